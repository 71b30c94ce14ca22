"""A torch.profiler trace of some steps, for https://ui.perfetto.dev or chrome://tracing."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch.profiler import profile

from train.window import Window


def profiled(windows: Iterable[Window], steps: Sequence[int], folder: Path, rank: int) -> Iterator[Window]:
    """The same windows; steps = [first, last] are recorded on rank 0 and written to folder/trace.json."""
    if not steps or rank != 0:
        yield from windows
        return
    first, last = steps
    profiler = None
    for window in windows:
        if profiler is None and first <= window.k <= last:
            profiler = profile()
            profiler.start()
        yield window
        if profiler is not None and window.k == last:
            profiler.stop()
            folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(folder / "trace.json"))
