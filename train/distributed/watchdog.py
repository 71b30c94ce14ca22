"""A run that stands still ends, and says where: stacks of all ranks, and which of them the others wait for."""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from train.batch.window import Window
from train.disk import open_own
from train.distributed.ranks import Ranks
from train.parts import Part
from train.terminal import write_lines

LONGEST_PERIOD_SECONDS = 10.0


def part(ranks: Ranks, deadline_seconds: float, folder: Path, end: Callable[[str, int], None]) -> Part:
    """`end(reason, step)` writes down how the run ended; it is called on rank 0, just before the process ends."""
    watchdog = Watchdog(ranks, deadline_seconds, folder, end)
    return Part(name="watchdog", windows=watchdog.windows)


class Watchdog:
    """Looks, in a thread of its own, whether training still moves: at each window, and each batch of an evaluation."""

    def __init__(self, ranks: Ranks, deadline_seconds: float, folder: Path, end: Callable[[str, int], None]) -> None:
        self._ranks, self._deadline, self._folder, self._end = ranks, deadline_seconds, folder, end
        self._period = min(LONGEST_PERIOD_SECONDS, deadline_seconds / 10)
        self._stacks = folder / f"stacks-rank{ranks.rank}.txt"
        self._step = 0
        self._main = threading.main_thread().ident
        self._over, self._alarm = threading.Event(), threading.Event()
        self._heard: list[list[str | None]] = []  # since the alarm: what all ranks said

    def windows(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The same windows, watched from the first to what follows the last."""
        watching, talking = (
            threading.Thread(target=work, name="watchdog", daemon=True) for work in (self._watch, self._talk)
        )
        watching.start()
        talking.start()
        try:
            for window in windows:
                self._step = window.k  # all that a step pays for it
                yield window
        finally:
            self._over.set()
            watching.join(1)

    def _talk(self) -> None:
        """A thread of its own: it waits for ever where the store is held by a process that is stopped."""
        told, board = 0, self._ranks.board()
        while not self._over.wait(self._period):
            told += 1
            board.pin("here", json.dumps({"told": told, "step": self._step, "place": self._place()}))
            if self._alarm.is_set():
                self._heard.append(board.read("here"))

    def _watch(self) -> None:
        seen = (0, 0)
        idle = 0  # looks since then: time in which the process was frozen as a whole is not counted
        with os.fdopen(open_own(self._stacks), "a") as file:  # those of an earlier attempt stay
            self._arm(file)
            while not self._over.wait(self._period):
                self._arm(file)
                now = (self._step, self._ranks.beats)
                if now != seen:
                    seen = now
                    idle = 0
                    continue
                idle += 1
                if idle * self._period > self._deadline:
                    self._stop(file)
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):  # the folder may be gone, or another run's
                if not self._stacks.stat().st_size and os.path.samestat(self._stacks.stat(), os.fstat(file.fileno())):
                    self._stacks.unlink()

    def _arm(self, file: TextIO) -> None:
        """Where something holds the GIL no Python thread runs: one of C writes the stacks then, and ends the process.

        It is later than `_stop`, so that other ranks have said by then which one is silent.
        """
        faulthandler.dump_traceback_later(self._deadline + 10 * self._period, file=file, exit=True)

    def _stop(self, file: TextIO) -> None:
        faulthandler.dump_traceback(file, all_threads=True)
        self._alarm.set()
        if self._over.wait(5 * self._period):  # for the others to say something twice; one that is frozen does not
            return
        reason = diagnosis(self._heard, self._deadline, self._folder)
        write_lines(f"rank {self._ranks.rank}: {reason}")
        if self._ranks.is_main:
            self._end(reason, self._step)
        time.sleep(self._period)  # for the others to write their stacks: the launcher ends them when it sees the first
        os._exit(1)

    def _place(self) -> str:
        """Where the main thread is: the innermost line of this package, or of the user's own code above it."""
        frame = sys._current_frames().get(self._main or 0)
        while frame and "site-packages" in frame.f_code.co_filename:
            frame = frame.f_back
        while frame and frame.f_code.co_filename.startswith("<"):
            frame = frame.f_back
        if not frame:
            return "nowhere"
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def diagnosis(heard: Sequence[Sequence[str | None]], deadline: float, folder: Path) -> str:
    """From what all ranks said, several times over: who is silent, who waits, and whom for."""
    lines, silent, waiting, steps = [], [], [], {}
    for rank, (then, now) in enumerate(zip(heard[0], heard[-1], strict=True)) if len(heard) > 1 else ():
        said = json.loads(now) if now else None
        if said is None or then == now:
            silent.append(rank)
            last = f"last at step {said['step']}, {said['place']}" if said else "never heard of"
            lines.append(f"  rank {rank}: silent ({last})")
        else:
            steps[rank] = said["step"]
            if said["place"].startswith("ranks.py"):
                waiting.append(rank)
            lines.append(f"  rank {rank}: step {said['step']}, {said['place']}")
    # Those that are a step behind, or do something else than to wait for a message.
    behind = [rank for rank, step in steps.items() if step == min(steps.values()) and rank not in waiting]
    if not lines:
        why = "the ranks cannot hear each other: what holds their store (the launcher, or rank 0) is stopped or gone"
    elif silent:
        why = f"rank(s) {', '.join(map(str, silent))} no longer answer: stopped, out of memory, or the machine is gone"
    elif 0 < len(behind) < len(heard[-1]):
        why = f"the others wait for rank(s) {', '.join(map(str, behind))}"
    else:
        why = "it cannot be told which rank came first"
    stacks = f"  the stacks are in {folder}/stacks-rank*.txt. If a step may take that long: runtime.timeout_seconds="
    told = [f"no progress for {deadline:g} s (runtime.timeout_seconds): {why}", *lines, f"{stacks}{10 * deadline:g}"]
    return "\n".join(told)
