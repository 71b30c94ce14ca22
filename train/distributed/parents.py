"""Whether the launchers of this process still run: one that was killed sends no signal."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from train.launching import LAUNCHER_PID

LAUNCHERS = ("accelerate", "accelerate.commands.launch")
"""Words of accelerate's command line; torchrun is recognised by a variable.

A parent that is a shell does not count: `nohup python -m ... &` outlives its shell.
"""


class Parents:
    """The launchers of this process when it started: train.launch, torchrun's agent, accelerate."""

    def __init__(self) -> None:
        # Kept for a comparison: the only trace of a parent that was killed is that this process has
        # another one.
        self._parent = os.getppid()
        self._parent_is_launcher = _starts_ranks(self._parent)
        self._launch = _process(os.environ.get(LAUNCHER_PID))

    def gone(self) -> str | None:
        """Which of them has ended; None where all run, or there is no launcher."""
        if self._parent_is_launcher and os.getppid() != self._parent:
            return f"the end of its launcher (process {self._parent})"
        if LAUNCHER_PID in os.environ and not _lives(self._launch):
            return f"the end of train.launch (process {os.environ[LAUNCHER_PID]})"
        return None


def _starts_ranks(pid: int) -> bool:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    with suppress(psutil.Error):
        words = [Path(word).name for word in psutil.Process(pid).cmdline()]
        return any(word in LAUNCHERS for word in words)
    return False


def _process(pid: str | None) -> psutil.Process | None:
    """psutil compares its start time too: another process may get its number."""
    if pid is None:
        return None
    with suppress(psutil.Error, ValueError):
        return psutil.Process(int(pid))
    return None


def _lives(process: psutil.Process | None) -> bool:
    if process is None:
        return False
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
