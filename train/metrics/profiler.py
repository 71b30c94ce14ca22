"""A torch.profiler trace of some steps, for https://ui.perfetto.dev or chrome://tracing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from torch.profiler import profile

from train.batch.window import Window
from train.disk import remove
from train.distributed.ranks import Ranks
from train.parts import Part
from train.redaction import clean_known
from train.report import Displaced

BLOCK = 2**20
"""Characters, in whole lines."""


def part(steps: Sequence[int], inside: Callable[[str], Path], ranks: Ranks) -> Part:
    """`steps`: profile.steps; `inside(name)`: a path in the run folder, where that is still the
    run's.
    """
    if not steps or ranks.rank != 0:
        return Part(name="profiler")
    return Part(
        name="profiler",
        windows=lambda windows: profiled(windows, steps, partial(inside, "profile")),
    )


def profiled(
    windows: Iterable[Window], steps: Sequence[int], place: Callable[[], Path]
) -> Iterator[Window]:
    """The same windows; steps = [first, last] are recorded, and written to place()/trace.json."""
    first, last = steps
    with ExitStack() as stack:  # ends the recording also where the run ends before `last`
        for window in windows:
            if window.k == first:
                stack.enter_context(_recorded(place))
            yield window
            if window.k == last:
                stack.close()


@contextmanager
def _recorded(place: Callable[[], Path]) -> Iterator[None]:
    with profile() as recording:
        yield
    with suppress(Displaced):  # said by the next row, and by the next save
        folder = place()
        folder.mkdir(exist_ok=True)
        remove(folder / "trace.json")
        _export(recording, folder)


def _export(recording: profile, folder: Path) -> None:
    """Without secrets: the names of its events are the user's."""
    unclean = folder / ".trace.unfinished"
    try:
        recording.export_chrome_trace(str(unclean))
        with (
            unclean.open(encoding="utf-8") as lines,
            (folder / "trace.json").open("w", encoding="utf-8") as cleaned,
        ):
            while block := lines.readlines(BLOCK):
                cleaned.write(clean_known("".join(block)))
    finally:
        unclean.unlink(missing_ok=True)
