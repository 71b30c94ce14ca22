"""The processes of one attempt, known by the mark in their environment: torchrun gives each rank
its own session.
"""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from train.launching import MARK


def remaining(attempt: str) -> list[psutil.Process]:
    """All that were started in this attempt and have not ended, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == attempt
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ranks_of(attempt: str, child: int, child_is_rank: bool) -> list[psutil.Process]:
    """The ranks alone, not their data workers: a SIGTERM kills those, and with them the step that
    is under way.

    Where the launcher of the ranks is gone, they are those whose parent is none of us.
    """
    marked = remaining(attempt)
    pids = {process.pid for process in marked}
    parents: dict[int, int] = {}
    for process in marked:
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    if child in pids and not child_is_rank:
        return [process for process in marked if parents.get(process.pid) == child]
    return [process for process in marked if parents.get(process.pid) not in pids]


def listens(process: psutil.Process) -> bool:
    """Whether it has the handlers of a training; where that cannot be seen (no /proc): yes.

    Known by that of SIGTERM: for SIGINT every Python has one, which ends it in the midst of an
    import.
    """
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return not Path("/proc/self/status").exists()
    caught = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return not caught or bool(int(caught[0], 16) >> (signal.SIGTERM - 1) & 1)


def send(number: int, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error, OSError):
            process.send_signal(number)


def ignored_signals() -> list[int]:
    """`nohup`, and `command &` in a script, let a process ignore these."""
    return [
        number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT) if _is_ignored(number)
    ]


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def wake_up_pipe() -> int:
    """Every signal that has a handler writes a byte into it: what waits, waits for that. The end to
    read from.
    """
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read
