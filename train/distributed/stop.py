"""A stop that was asked for: a signal, a deadline or a file sets a flag, on which the ranks agree
before a step.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from train.distributed.parents import Parents
from train.launching import LAUNCHER_PID, LEAVE_SECONDS, STOP_SIGNALS

# between two looks for the stop file: some file systems take milliseconds for an answer
LOOK_SECONDS = 1.0


class Stop:
    """SIGTERM, SIGINT, SIGUSR1, SIGHUP and SIGQUIT ask for a stop; Ctrl-C again after 2 s leaves at
    once.

    So do `hours` since the start, a file of the name that `watch` is told, the end of the launcher
    where `watch_launcher` says so, and whoever calls `ask`.
    """

    def __init__(self, hours: float | None = None, watch_launcher: bool = False) -> None:
        self.cause: str | None = None
        self._interrupted_at: float | None = None
        self._deadline = time.monotonic() + hours * 3600 if hours else None
        self._hours = hours
        self._file: Path | None = None
        self._is_ours: Callable[[], bool] = lambda: True
        self._parents = Parents() if watch_launcher else None
        self._next_look = 0.0

    def listen(self) -> None:
        for name in STOP_SIGNALS:
            number = getattr(signal, name)
            # `nohup` and `command &` in a script let this process ignore what the terminal sends.
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (ignored and name in ("SIGHUP", "SIGQUIT")):
                signal.signal(number, self._on_signal)

    def watch(self, file: Path, is_ours: Callable[[], bool] = lambda: True) -> None:
        """`is_ours`: whether its folder is still this run's; the file of another run is left to
        that one.
        """
        self._file = file
        self._is_ours = is_ours

    def ask(self, cause: str) -> None:
        self.cause = self.cause or cause

    def requested(self) -> bool:
        """To be asked once per step."""
        now = time.monotonic()
        if self._deadline and now >= self._deadline:
            self.ask(f"duration.hours={self._hours:g}")
        if now >= self._next_look and not self.cause:
            self._next_look = now + LOOK_SECONDS
            self._look()
        return self.cause is not None

    def _look(self) -> None:
        gone = self._parents.gone() if self._parents else None
        if gone:
            self.ask(gone)
        if self._file and self._file.exists() and self._is_ours():
            self.ask(f"the file {self._file}")
            self._file.unlink(missing_ok=True)  # or the next start would stop too

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name
        # counted alone: after any other cause the first one must not lose the save
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            if LAUNCHER_PID not in os.environ and os.environ.get("RANK", "0") == "0":
                # Not print: the handler may stand inside of one.
                text = (
                    f"\nstopping, and saving; Ctrl-C again after {LEAVE_SECONDS:g} s leaves at "
                    "once\n"
                )
                _write(text)
        elif now - self._interrupted_at >= LEAVE_SECONDS:
            raise KeyboardInterrupt


def _write(text: str) -> None:
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    except (OSError, ValueError):  # nobody reads it
        return
