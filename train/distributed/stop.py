"""Requests to stop: a signal, a deadline or a file sets a flag; ranks agree on it before a step."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from train.distributed.parents import Parents
from train.launching import LAUNCHER_PID, LEAVE_SECONDS, STOP_SIGNALS

# Between two polls for the stop file: some file systems need milliseconds for an answer.
POLL_SECONDS = 1.0


class Stop:
    """Whether a stop is requested, and by what.

    By SIGTERM, SIGINT, SIGUSR1, SIGHUP or SIGQUIT (Ctrl-C again after 2 s leaves at once), `hours`
    since the start, the file passed to `watch`, the end of the launcher with `watch_launcher`, or
    `ask`.
    """

    def __init__(self, hours: float | None = None, watch_launcher: bool = False) -> None:
        self.cause: str | None = None
        self._interrupted_at: float | None = None
        self._deadline = time.monotonic() + hours * 3600 if hours else None
        self._hours = hours
        self._file: Path | None = None
        self._is_ours: Callable[[], bool] = lambda: True
        self._parents = Parents() if watch_launcher else None
        self._next_poll = 0.0

    def listen(self) -> None:
        for name in STOP_SIGNALS:
            number = getattr(signal, name)
            # `nohup` and `command &` in a script make this process ignore the terminal's signals.
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (ignored and name in ("SIGHUP", "SIGQUIT")):
                signal.signal(number, self._on_signal)

    def watch(self, file: Path, is_ours: Callable[[], bool] = lambda: True) -> None:
        """Stop when `file` exists. `is_ours`: whether its folder is still that of this run."""
        self._file = file
        self._is_ours = is_ours

    def ask(self, cause: str) -> None:
        self.cause = self.cause or cause

    def requested(self) -> bool:
        """To be called once per step."""
        now = time.monotonic()
        if self._deadline and now >= self._deadline:
            self.ask(f"duration.hours={self._hours:g}")
        if now >= self._next_poll and not self.cause:
            self._next_poll = now + POLL_SECONDS
            self._poll()
        return self.cause is not None

    def _poll(self) -> None:
        gone = self._parents.gone() if self._parents else None
        if gone:
            self.ask(gone)
        if self._file and self._file.exists() and self._is_ours():
            self.ask(f"the file {self._file}")
            self._file.unlink(missing_ok=True)  # or the next start would stop too

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.cause = signal.Signals(number).name
        # Counted separately: after another signal, the first Ctrl-C must not prevent the save.
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            # Under launch.sh the launcher prints this sentence; of several ranks one is enough.
            if LAUNCHER_PID not in os.environ and os.environ.get("RANK", "0") == "0":
                _write(
                    f"\nstopping, and saving; Ctrl-C again after {LEAVE_SECONDS:g} s leaves at "
                    "once\n"
                )
        elif now - self._interrupted_at >= LEAVE_SECONDS:
            raise KeyboardInterrupt


def _write(text: str) -> None:
    """Not by print, which this signal handler may have interrupted."""
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
    except (OSError, ValueError):  # stderr is closed
        return
