"""How long a rank waited for a processor: shows that a run was timed on a busy machine.

The kernel counts for each thread how long it was ready to run while others had the processor
(sched_info, in /proc/thread-self/schedstat). It does not name them: other programs, or more ranks
and threads of this run than there are processors. Work on other processors, which slows memory
down, is not seen. The metric is absent where the kernel does not count.
"""

import time
from pathlib import Path

from train import metric_names

SCHEDSTAT = Path("/proc/thread-self/schedstat")


def waited_seconds() -> float | None:
    """Of this thread, since it began; None where the kernel does not count."""
    try:
        # Nanoseconds on the processor, nanoseconds waiting for it, and a count.
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


class CpuWait:
    """The waiting share of the time since the last call."""

    def __init__(self) -> None:
        self._waited = waited_seconds()
        self._time = time.perf_counter()

    def take(self) -> dict[str, float]:
        """Empty where the kernel does not count."""
        waited = waited_seconds()
        now = time.perf_counter()
        metrics = {}
        if waited is not None and self._waited is not None:
            metrics[metric_names.CPU_WAIT] = (waited - self._waited) / (now - self._time)
        self._waited = waited
        self._time = now
        return metrics
