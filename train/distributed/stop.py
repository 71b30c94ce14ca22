"""A stop that was asked for: a signal, a deadline or a file sets a flag, on which the ranks agree before a step."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 1.0  # between two looks for the stop file: some file systems take milliseconds for an answer


class Stop:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop; a second SIGINT (Ctrl-C) leaves at once.

    So do `hours` since the start, a file of the name that `watch` is told, and whoever calls `ask`.
    """

    def __init__(self, hours: float | None = None) -> None:
        self.cause: str | None = None
        self._interrupted = False
        self._deadline = time.monotonic() + hours * 3600 if hours else None
        self._hours = hours
        self._file: Path | None = None
        self._is_ours: Callable[[], bool] = lambda: True
        self._next_look = 0.0

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def watch(self, file: Path, is_ours: Callable[[], bool] = lambda: True) -> None:
        """`is_ours`: whether its folder is still this run's; the file of another run is left to that one."""
        self._file = file
        self._is_ours = is_ours

    def ask(self, cause: str) -> None:
        self.cause = self.cause or cause

    def requested(self) -> bool:
        """To be asked once per step."""
        now = time.monotonic()
        if self._deadline and now >= self._deadline and not self.cause:
            self.cause = f"duration.hours={self._hours:g}"
        if self._file and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            if self._file.exists() and self._is_ours() and not self.cause:
                self.cause = f"the file {self._file}"
                self._file.unlink(missing_ok=True)  # or the next start would stop too
        return self.cause is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name
        if number == signal.SIGINT:  # counted alone: after any other cause the first one must not lose the save
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
