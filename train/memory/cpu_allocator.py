"""What torch's own allocator on a CPU gave out, at most at once: its profiler writes down each
block.
"""

from typing import Any

from torch.profiler import ProfilerActivity, profile

MEMORY = "[memory]"
"""The name that torch gives to an event of the allocator."""


class AllocatedPeak:
    """Bytes in use at most at once from `start` to `stop`, beside those that were there before;
    workspaces included.

    The profiler costs time for each operation, and keeps all that it has seen until the end.
    """

    def start(self) -> None:
        self._profiler = profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self._profiler.start()

    def stop(self) -> int:
        self._profiler.stop()
        inner: Any = self._profiler.profiler
        events = [event for event in inner.kineto_results.events() if event.name() == MEMORY]
        events.sort(key=lambda event: event.start_ns())
        now = peak = 0
        for event in events:
            now += event.nbytes()
            peak = max(peak, now)
        return peak
