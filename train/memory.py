"""Peak memory since the last look: of the GPU's allocator, or of the process on a CPU."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from train import names

GIB = 2**30
T = TypeVar("T")


class PeakMemory:
    """Peaks of this rank since the last row. What cannot be measured is absent, never 0."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._peaks: dict[str, float] = {}
        self.take()

    def mark(self, phase: str | None = None) -> None:
        """A phase ends here: keep its peak under this metric name. GPUs only; asks the allocator's own counters."""
        if self._device is None:
            return
        peaks = {
            names.PEAK_ALLOCATED: torch.cuda.max_memory_allocated(self._device) / GIB,
            names.PEAK_RESERVED: torch.cuda.max_memory_reserved(self._device) / GIB,
        }
        torch.cuda.reset_peak_memory_stats(self._device)
        if phase:
            peaks[phase] = peaks[names.PEAK_ALLOCATED]
        for name, peak in peaks.items():
            self._peaks[name] = max(peak, self._peaks.get(name, 0.0))

    def around(self, function: Callable[[], T], phase: str) -> Callable[[], T]:
        """The same function, its peak kept under this metric name."""

        def watched() -> T:
            self.mark()
            try:
                return function()
            finally:
                self.mark(phase)

        return watched

    def take(self) -> dict[str, float]:
        """{metric: GiB} since the last call."""
        if self._device is None:
            peak = _peak_rss_bytes()
            return {names.PEAK_RSS: peak / GIB} if _reset_peak_rss() and peak else {}
        self.mark()
        peaks, self._peaks = self._peaks, {}
        return peaks


def _peak_rss_bytes() -> int | None:
    """The kernel's high-water mark of this process; None where there is no /proc."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _reset_peak_rss() -> bool:
    """Lower the mark to what is used now; False where that is not permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
