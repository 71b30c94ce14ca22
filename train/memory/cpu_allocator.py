"""The peak of torch's CPU allocator, from the memory events of torch.profiler."""

from typing import Any

from torch.profiler import ProfilerActivity, profile

MEMORY = "[memory]"
"""The name that torch gives to an allocator event."""


class AllocatedPeak:
    """The most bytes in use at once between `start` and `stop`, workspaces included.

    Counted on top of what was allocated before `start`. The profiler costs time for each operation
    and keeps all events until the end.
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
        # In the order of time: only so is the running sum what was in use.
        events.sort(key=lambda event: event.start_ns())
        in_use = 0
        peak = 0
        for event in events:
            # Negative where memory was freed.
            in_use += event.nbytes()
            peak = max(peak, in_use)
        return peak
