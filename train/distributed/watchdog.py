"""Ends a run that makes no progress, and reports stacks and the rank that others wait for."""

import faulthandler
import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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
    """Watches what is done inside, on every rank: steps, evaluations, saves.

    `step()`: how many are done. `end(reason, step)` writes down how the run ended; it is called on
    rank 0, just before the process ends.
    """
    watchdog = Watchdog(ranks, deadline_seconds, folder, step, end)
    # From here on the watchdog ends a run that hangs. Until now the time-outs of the groups did.
    ranks.wait_for_watchdog()
    watchdog.start()
    try:
        yield
    finally:
        watchdog.finish()


class Watchdog:
    """A thread that polls for progress: steps, batches of an evaluation, bytes of a save.

    It counts its polls, not seconds: time in which the whole process was frozen does not count.
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
        self._progress_of_main: list[int] = []  # rank 0's step and beats: others wait for its saves
        self._main_thread = threading.main_thread().ident
        self._over = threading.Event()
        self._alarm = threading.Event()
        self._reports: list[list[str | None]] = []  # since the alarm: those of all ranks
        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._publishing = threading.Thread(target=self._publish, name="watchdog", daemon=True)

    def start(self) -> None:
        self._watching.start()
        self._publishing.start()

    def finish(self) -> None:
        self._over.set()
        self._watching.join(1)

    def _publish(self) -> None:
        """Publish where this rank is, and read where the others are.

        In a second thread: it blocks for ever where the process that holds the store is stopped.
        """
        board = self._ranks.board()
        number = 0
        while not self._over.wait(self._period):
            number += 1
            report = {
                "number": number,  # so that two reports of a rank that is alive differ
                "step": self._ranks.pulse.window,
                "beats": self._beats,
                "location": self._location(),
            }
            board.pin("here", json.dumps(report))
            # While rank 0 saves, the others make no progress of their own.
            if not self._ranks.is_main:
                of_main = board.read_of("here", 0)
                if of_main:
                    main = json.loads(of_main)
                    self._progress_of_main = [main["step"], main["beats"]]
            # Two reports of each rank, some periods apart, show which one is silent.
            if self._alarm.is_set():
                self._reports.append(board.read("here"))

    def _watch(self) -> None:
        last: list[int] = []
        idle = 0  # polls since it changed
        with os.fdopen(open_own(self._stacks), "a") as file:  # those of an earlier attempt stay
            # Later than `_stop`, so that other ranks have reported by then which one is silent.
            seconds = self._deadline + 10 * self._period
            outside = Outside(self._period, seconds, file, self._gil_message())
            while not self._over.wait(self._period):
                outside.notify()
                self._beats = self._ranks.pulse.look()
                progress = [self._ranks.pulse.window, self._beats, *self._progress_of_main]
                if progress != last:
                    last = progress
                    idle = 0
                    continue
                idle += 1
                if idle * self._period > self._deadline:
                    self._stop(file)
            outside.end()
            with suppress(OSError):  # the folder may be gone
                status = self._stacks.stat()
                is_ours = os.path.samestat(status, os.fstat(file.fileno()))  # not of another run
                if is_ours and status.st_size == 0:
                    self._stacks.unlink()

    def _gil_message(self) -> str:
        """Printed by the process outside: no Python thread runs while something holds the GIL."""
        return (
            f"rank {self._ranks.rank}: no progress for {self._deadline:g} s "
            "(runtime.timeout_seconds): something holds Python's lock (GIL). The stacks are in "
            f"{self._stacks}"
        )

    def _stop(self, file: TextIO) -> None:
        # The stacks first: the launcher ends this process as soon as another rank has left.
        faulthandler.dump_traceback(file, all_threads=True)
        self._alarm.set()
        # Time for the others to report twice; one that is frozen does not.
        if self._over.wait(5 * self._period):
            return
        reason = diagnosis(self._reports, self._deadline, self._folder)
        write_lines(f"rank {self._ranks.rank}: {reason}")
        if self._ranks.is_main:
            self._end(reason, self._step())
        # Time for the others to write their stacks: the launcher ends them after the first one.
        time.sleep(self._period)
        # Not sys.exit, which would end this thread alone: the main thread hangs.
        os._exit(1)

    def _location(self) -> str:
        """Where the main thread is: its innermost line outside of libraries."""
        frame = sys._current_frames().get(self._main_thread or 0)
        while frame and _is_of_a_library(frame.f_code.co_filename):
            frame = frame.f_back
        if not frame:
            return "nowhere"
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _is_of_a_library(file: str) -> bool:
    return "site-packages" in file or file.startswith(("<", STANDARD_LIBRARY))


@dataclass
class _Diagnosis:
    """What the reports of all ranks show."""

    lines: list[str] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    """Ranks that no longer report."""
    waiting: list[int] = field(default_factory=list)
    """Ranks that wait for a message of others."""
    steps: dict[int, int] = field(default_factory=dict)
    """The step of each rank that reports."""

    def add(self, rank: int, first: str | None, last: str | None) -> None:
        """`first`, `last`: reports of a rank, some periods apart."""
        report = json.loads(last) if last else None
        if report is None or first == last:
            self.silent.append(rank)
            seen = "never heard of"
            if report:
                seen = f"last at step {report['step']}, {report['location']}"
            self.lines.append(f"  rank {rank}: silent ({seen})")
            return
        self.steps[rank] = report["step"]
        if report["location"].startswith(WAITS_IN):
            self.waiting.append(rank)
        self.lines.append(f"  rank {rank}: step {report['step']}, {report['location']}")

    def behind(self) -> list[int]:
        """Ranks at the lowest step that do something else than wait for a message."""
        if not self.steps:
            return []
        lowest = min(self.steps.values())
        return [
            rank for rank, step in self.steps.items() if step == lowest and rank not in self.waiting
        ]

    def cause(self) -> str:
        if not self.lines:
            return (
                "the ranks cannot hear each other: what holds their store (the launcher, or rank "
                "0) is stopped or gone"
            )
        if self.silent:
            return (
                f"rank(s) {', '.join(map(str, self.silent))} no longer answer: stopped, out of "
                "memory, or the machine is gone"
            )
        behind = self.behind()
        # If all are behind, or none is, nobody waits for a rank that could be named.
        if 0 < len(behind) < len(self.lines):
            return f"the others wait for rank(s) {', '.join(map(str, behind))}"
        return "which rank came first is unknown"


def diagnosis(reports: Sequence[Sequence[str | None]], deadline: float, folder: Path) -> str:
    """Which rank is silent, which waits, and for whom.

    `reports`: of all ranks, several times.
    """
    diagnosed = _Diagnosis()
    if len(reports) > 1:
        for rank, (first, last) in enumerate(zip(reports[0], reports[-1], strict=True)):
            diagnosed.add(rank, first, last)
    message = [
        f"no progress for {deadline:g} s (runtime.timeout_seconds): {diagnosed.cause()}",
        *diagnosed.lines,
        f"  the stacks are in {folder}/stacks-rank*.txt. If a step may take that long, set: "
        f"runtime.timeout_seconds={10 * deadline:g}",
    ]
    return "\n".join(message)
