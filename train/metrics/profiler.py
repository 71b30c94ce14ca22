"""A torch.profiler trace of some steps, for https://ui.perfetto.dev or chrome://tracing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch.profiler import profile

from train.batch.window import Window
from train.distributed.ranks import Ranks
from train.parts import Part


def part(steps: Sequence[int], folder: Path, ranks: Ranks) -> Part:
    """`steps`: profile.steps; `folder`: of the run."""
    return Part(
        name="profiler",
        windows=lambda windows: profiled(windows, steps, folder / "profile", ranks.rank),
    )


def profiled(windows: Iterable[Window], steps: Sequence[int], folder: Path, rank: int) -> Iterator[Window]:
    """The same windows; steps = [first, last] are recorded on rank 0 and written to folder/trace.json."""
    if not steps or rank != 0:
        yield from windows
        return
    first, last = steps
    with ExitStack() as stack:  # ends the recording also where the run ends before `last`
        for window in windows:
            if window.k == first:
                stack.enter_context(_recorded(folder))
            yield window
            if window.k == last:
                stack.close()


@contextmanager
def _recorded(folder: Path) -> Iterator[None]:
    with profile() as recording:
        yield
    folder.mkdir(exist_ok=True)
    recording.export_chrome_trace(str(folder / "trace.json"))
