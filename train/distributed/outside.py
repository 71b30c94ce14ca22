"""A process beside a rank, for what no thread inside can do: to end it while something holds the
GIL.

It counts its own looks, not a clock. Not counted is time in which it was frozen together with the
rank, or in which the rank alone was stopped. A timer inside the rank (faulthandler's) would end a
job that wakes from a long freeze.
"""

import faulthandler
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TextIO

# nobody else's: profilers use SIGPROF, timers SIGALRM, schedulers the others
SIGNAL = signal.SIGVTALRM

# Reads a byte for each look of the thread inside. No import but of what is built in: it starts in
# 15 ms.
_LOOK = """
import os, select, signal, sys
rank = int(sys.argv[1])
period = float(sys.argv[2])
limit = float(sys.argv[3])
number = int(sys.argv[4])
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)

def is_stopped():
    try:
        with open(f"/proc/{rank}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False

silent = 0
while silent < limit and os.getppid() == rank:
    if select.select([0], [], [], period)[0]:
        silent = 0
        if not os.read(0, 4096):
            sys.exit()
    elif not is_stopped():
        silent += 1
if os.getppid() == rank:
    os.write(2, sys.argv[5].encode() + b"\\n")
    os.kill(rank, number)
"""


class Outside:
    """Of one rank. Where `tell` has not been called for `seconds`, it writes all stacks to `file`
    and ends the rank.
    """

    def __init__(self, period: float, seconds: float, file: TextIO, sentence: str) -> None:
        # then what ends the process
        faulthandler.register(SIGNAL, file=file, all_threads=True, chain=True)
        numbers = (os.getpid(), period, int(seconds / period), int(SIGNAL))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LOOK, *map(str, numbers), sentence],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={},  # it is none of the processes that the launcher looks for
        )

    def tell(self) -> None:
        """This rank's threads run."""
        assert self._process.stdin
        with suppress(OSError):  # somebody killed it
            os.write(self._process.stdin.fileno(), b".")

    def end(self) -> None:
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        faulthandler.unregister(SIGNAL)
