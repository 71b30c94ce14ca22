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
"""Characters of whole lines that are redacted at once."""


def part(steps: Sequence[int], inside: Callable[[str], Path], ranks: Ranks) -> Part:
    """`steps`: profile.steps; `inside(name)`: a path in the run folder.

    It raises Displaced where the folder belongs to another run by now.
    """
    if not steps or ranks.rank != 0:
        return Part(name="profiler")
    return Part(
        name="profiler",
        windows=lambda windows: profiled(windows, steps, partial(inside, "profile")),
    )


def profiled(
    windows: Iterable[Window], steps: Sequence[int], make_path: Callable[[], Path]
) -> Iterator[Window]:
    """The same windows; steps [first, last] are recorded, into make_path()/trace.json."""
    first, last = steps
    with ExitStack() as stack:  # ends the recording also where the run ends before `last`
        for window in windows:
            if window.k == first:
                stack.enter_context(_recorded(make_path))
            yield window
            if window.k == last:
                stack.close()


@contextmanager
def _recorded(make_path: Callable[[], Path]) -> Iterator[None]:
    with profile() as recording:
        yield
    with suppress(Displaced):  # the next row and the next save report it
        folder = make_path()
        folder.mkdir(exist_ok=True)
        remove(folder / "trace.json")
        _export(recording, folder)


def _export(recording: profile, folder: Path) -> None:
    """Redacted: the user names the events."""
    unredacted = folder / ".trace.unfinished"
    try:
        recording.export_chrome_trace(str(unredacted))
        with (
            unredacted.open(encoding="utf-8") as source,
            (folder / "trace.json").open("w", encoding="utf-8") as target,
        ):
            while lines := source.readlines(BLOCK):
                target.write(clean_known("".join(lines)))
    finally:
        unredacted.unlink(missing_ok=True)
