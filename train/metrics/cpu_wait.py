"""How long a rank waited for a processor: what shows that a run was timed while something else was
at work.

The kernel counts for each thread how long it was ready to run while others had the processor
(sched_info, in /proc/thread-self/schedstat). Who the others are it does not say: other programs, or
more ranks and threads of this run than there are processors. Work on other processors, which slows
memory down, is not seen. Absent where the kernel does not count.
"""

import time
from pathlib import Path

from train import metric_names

SCHEDSTAT = Path("/proc/thread-self/schedstat")


def waited_seconds() -> float | None:
    """Of this thread, since it began. None: the kernel does not count."""
    try:
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


class CpuWait:
    """The share of the time since the last look."""

    def __init__(self) -> None:
        self._waited = waited_seconds()
        self._at = time.perf_counter()

    def take(self) -> dict[str, float]:
        """Empty where the kernel does not count."""
        waited, now = waited_seconds(), time.perf_counter()
        found = {}
        if waited is not None and self._waited is not None:
            found[metric_names.CPU_WAIT] = (waited - self._waited) / (now - self._at)
        self._waited = waited
        self._at = now
        return found
