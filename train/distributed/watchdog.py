"""A run that stands still ends, and says where: stacks of all ranks, and which of them the others
wait for.
"""

import faulthandler
import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from train.disk import open_own
from train.distributed.outside import Outside
from train.distributed.ranks import Ranks
from train.terminal import write_lines

LONGEST_PERIOD_SECONDS = 10.0
STANDARD_LIBRARY = sysconfig.get_path("stdlib")
# A rank whose main thread is in one of these files waits for another rank: in a message, or for
# its part of a stream.
WAITS_IN = ("ranks.py", "handout.py")


@contextmanager
def watched(
    ranks: Ranks,
    deadline_seconds: float,
    folder: Path,
    step: Callable[[], int],
    end: Callable[[str, int], None],
) -> Iterator[None]:
    """All that is done inside, on every rank: steps, evaluations, saves. `step()`: how many are
    done.

    `end(reason, step)` writes down how the run ended; it is called on rank 0, just before the
    process ends.
    """
    watchdog = Watchdog(ranks, deadline_seconds, folder, step, end)
    ranks.wait_for_watchdog()
    watchdog.start()
    try:
        yield
    finally:
        watchdog.finish()


class Watchdog:
    """Looks, in a thread of its own, whether the run still moves: at steps, batches of an
    evaluation, bytes of a save.

    It counts its looks, not a clock: time in which the process was frozen as a whole is not
    counted.
    """

    def __init__(
        self,
        ranks: Ranks,
        deadline_seconds: float,
        folder: Path,
        step: Callable[[], int],
        end: Callable[[str, int], None],
    ) -> None:
        self._ranks = ranks
        self._deadline = deadline_seconds
        self._folder = folder
        self._step = step
        self._end = end
        self._period = min(LONGEST_PERIOD_SECONDS, deadline_seconds / 10)
        self._stacks = folder / f"stacks-rank{ranks.rank}.txt"
        self._beats = 0
        self._main_rank: list[int] = []  # its step and beats: the others wait while it saves
        self._main = threading.main_thread().ident
        self._over, self._alarm = threading.Event(), threading.Event()
        self._heard: list[list[str | None]] = []  # since the alarm: what all ranks said

        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._talking = threading.Thread(target=self._talk, name="watchdog", daemon=True)

    def start(self) -> None:
        self._watching.start()
        self._talking.start()

    def finish(self) -> None:
        self._over.set()
        self._watching.join(1)

    def _talk(self) -> None:
        """A thread of its own: it waits for ever where the store is held by a process that is
        stopped.
        """
        told, board = 0, self._ranks.board()
        while not self._over.wait(self._period):
            told += 1
            here = {
                "told": told,
                "step": self._ranks.pulse.window,
                "beats": self._beats,
                "place": self._place(),
            }
            board.pin("here", json.dumps(here))
            if not self._ranks.is_main:
                of_main = board.read_of("here", 0)
                if of_main:
                    said = json.loads(of_main)
                    self._main_rank = [said["step"], said["beats"]]
            if self._alarm.is_set():
                self._heard.append(board.read("here"))

    def _watch(self) -> None:
        seen: list[int] = []
        idle = 0  # looks since then
        with os.fdopen(open_own(self._stacks), "a") as file:  # those of an earlier attempt stay
            # Later than `_stop`, so that other ranks have said by then which one is silent.
            outside = Outside(self._period, self._deadline + 10 * self._period, file, self._held())
            while not self._over.wait(self._period):
                outside.tell()
                self._beats = self._ranks.pulse.look()
                now = [self._ranks.pulse.window, self._beats, *self._main_rank]
                if now != seen:
                    seen = now
                    idle = 0
                    continue
                idle += 1
                if idle * self._period > self._deadline:
                    self._stop(file)
            outside.end()
            with suppress(OSError):  # the folder may be gone, or another run's
                if not self._stacks.stat().st_size and os.path.samestat(
                    self._stacks.stat(), os.fstat(file.fileno())
                ):
                    self._stacks.unlink()

    def _held(self) -> str:
        """For the process outside: no thread of Python runs where something holds the GIL."""
        return (
            f"rank {self._ranks.rank}: no progress for {self._deadline:g} s "
            "(runtime.timeout_seconds): something holds Python's lock (GIL). The stacks are in "
            f"{self._stacks}"
        )

    def _stop(self, file: TextIO) -> None:
        faulthandler.dump_traceback(file, all_threads=True)
        self._alarm.set()
        # for the others to say something twice; one that is frozen does not
        if self._over.wait(5 * self._period):
            return
        reason = diagnosis(self._heard, self._deadline, self._folder)
        write_lines(f"rank {self._ranks.rank}: {reason}")
        if self._ranks.is_main:
            self._end(reason, self._step())
        # for the others to write their stacks: the launcher ends them when it sees the first
        time.sleep(self._period)
        os._exit(1)

    def _place(self) -> str:
        """Where the main thread is: the innermost line of this package, or of the user's own code
        above it.
        """
        frame = sys._current_frames().get(self._main or 0)
        while frame and _is_of_a_library(frame.f_code.co_filename):
            frame = frame.f_back
        if not frame:
            return "nowhere"
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _is_of_a_library(file: str) -> bool:
    return "site-packages" in file or file.startswith(("<", STANDARD_LIBRARY))


def diagnosis(heard: Sequence[Sequence[str | None]], deadline: float, folder: Path) -> str:
    """From what all ranks said, several times over: who is silent, who waits, and whom for."""
    lines, silent, waiting, steps = [], [], [], {}
    for rank, (then, now) in (
        enumerate(zip(heard[0], heard[-1], strict=True)) if len(heard) > 1 else ()
    ):
        said = json.loads(now) if now else None
        if said is None or then == now:
            silent.append(rank)
            last = f"last at step {said['step']}, {said['place']}" if said else "never heard of"
            lines.append(f"  rank {rank}: silent ({last})")
        else:
            steps[rank] = said["step"]
            if said["place"].startswith(WAITS_IN):
                waiting.append(rank)
            lines.append(f"  rank {rank}: step {said['step']}, {said['place']}")
    # Those that are a step behind, or do something else than to wait for a message.
    behind = [
        rank for rank, step in steps.items() if step == min(steps.values()) and rank not in waiting
    ]
    if not lines:
        why = (
            "the ranks cannot hear each other: what holds their store (the launcher, or rank 0) "
            "is stopped or gone"
        )
    elif silent:
        why = (
            f"rank(s) {', '.join(map(str, silent))} no longer answer: stopped, out of memory, or "
            "the machine is gone"
        )
    elif 0 < len(behind) < len(heard[-1]):
        why = f"the others wait for rank(s) {', '.join(map(str, behind))}"
    else:
        why = "it cannot be told which rank came first"
    stacks = (
        f"  the stacks are in {folder}/stacks-rank*.txt. If a step may take that long: "
        "runtime.timeout_seconds="
    )
    told = [
        f"no progress for {deadline:g} s (runtime.timeout_seconds): {why}",
        *lines,
        f"{stacks}{10 * deadline:g}",
    ]
    return "\n".join(told)
