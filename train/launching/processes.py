"""The processes of one attempt, identified by a variable of their environment.

Not by session or process group: torchrun gives each rank a session of its own.
"""

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from train.launching import MARK


def remaining(attempt: str) -> list[psutil.Process]:
    """All that were started in this attempt and still run, also those whose parent has ended."""
    alive = []
    for process in psutil.process_iter():
        # Processes of other users, and those that end meanwhile, cannot be asked.
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == attempt
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def ranks_of(attempt: str, child: int, child_is_rank: bool) -> list[psutil.Process]:
    """The ranks without their data workers, which a SIGTERM would kill in the middle of a step.

    Where the ranks' launcher has ended, they are those whose parent is not of this attempt.
    """
    marked = remaining(attempt)
    pids = {process.pid for process in marked}
    parents: dict[int, int] = {}
    for process in marked:
        with suppress(psutil.Error):
            parents[process.pid] = process.ppid()
    # The launcher's children are the ranks. Theirs are data workers.
    if child in pids and not child_is_rank:
        return [process for process in marked if parents.get(process.pid) == child]
    return [process for process in marked if parents.get(process.pid) not in pids]


def listens(process: psutil.Process) -> bool:
    """Whether it has installed its signal handlers; True where that cannot be seen (no /proc).

    Judged by that of SIGTERM: every Python has one for SIGINT, which would end an import.
    """
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return not Path("/proc/self/status").exists()
    masks = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    if not masks:
        return True
    caught = int(masks[0], 16)  # bit n - 1: signal n has a handler
    return bool(caught >> (signal.SIGTERM - 1) & 1)


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
    """The read end of a pipe into which each handled signal writes a byte, to wait for."""
    # set_wakeup_fd refuses an end that blocks; and the loop must not wait at an empty pipe.
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read
