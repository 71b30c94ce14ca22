"""A process beside a rank that ends it while something holds the GIL: no thread inside could.

It counts its polls, not seconds: time does not count in which it was frozen together with the rank,
or in which the rank alone was stopped. A timer inside the rank (faulthandler's) would end a job
that resumes after a long freeze.
"""

import faulthandler
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TextIO

# The one that nothing else uses: profilers have SIGPROF, timers SIGALRM, schedulers the others.
SIGNAL = signal.SIGVTALRM

# Reads a byte for each poll of the thread inside. It imports modules that are built in only, and so
# starts in 15 ms.
# It ignores all stop signals: SLURM sends them to every process, and the rank still has to save.
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
    """Without `notify` for `seconds`, it writes all stacks to `file` and ends the rank."""

    def __init__(self, period: float, seconds: float, file: TextIO, sentence: str) -> None:
        # chain: after the stacks the default handler follows, which ends the process
        faulthandler.register(SIGNAL, file=file, all_threads=True, chain=True)
        numbers = (os.getpid(), period, int(seconds / period), int(SIGNAL))
        # -I and -S: no site-packages, and nothing of the current folder or the user's variables.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LOOK, *map(str, numbers), sentence],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={},  # without the launcher's mark, which would count it among the ranks
        )

    def notify(self) -> None:
        """This rank's threads run."""
        assert self._process.stdin
        with suppress(OSError):  # that process was killed
            os.write(self._process.stdin.fileno(), b".")

    def end(self) -> None:
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        faulthandler.unregister(SIGNAL)
