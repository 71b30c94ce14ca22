"""What torch's own allocator on a CPU gave out, at most at once: its profiler writes down each block."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

MEMORY = "[memory]"
"""The name that torch gives to an event of the allocator."""


def allocated_peak(work: Callable[[], object]) -> int:
    """Bytes that `work` had in use at most at once, beside those that were there before; workspaces included.

    The profiler costs time for each operation, and keeps all that it has seen until the end.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    inner: Any = profiler.profiler
    events = [event for event in inner.kineto_results.events() if event.name() == MEMORY]
    events.sort(key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak
