"""Samples of a step that are read when their micro-batch is asked for.

What is held in memory is then a micro-batch, not a step. Weights are counted one step ahead, from
the columns that the task names for it (Task.weight_columns).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch

from train.batch.window import Batch

ReadSlice = Callable[[int, int], Batch]
"""(start, stop), positions among this rank's samples of the step -> these samples"""


class Deferred:
    """One rank's samples of a step, in the order in which they are trained."""

    images: frozenset[str] = frozenset()
    """Columns of images; those of 8 bits are scaled on the device."""
    is_weighed: bool = False
    """Weights can be counted before the samples are read."""

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """The samples in pieces of these sizes, each read when it is asked for.

        For 0: one sample of the step.
        """
        raise NotImplementedError

    def weighed(self) -> Iterator[Batch]:
        """All samples, some at a time, with `sample_id` and the columns that weights need."""
        raise NotImplementedError


class DeferredReads(Deferred):
    """Samples that can be read at any time."""

    def __init__(
        self,
        read: ReadSlice,
        filler: Callable[[], Batch],
        weighed: ReadSlice | None,
        sizes: Sequence[int],
        images: frozenset[str] = frozenset(),
    ) -> None:
        """`weighed` reads the columns that weights need; None: these are unknown."""
        self.images = images
        self.is_weighed = weighed is not None
        self._read = read
        self._filler = filler
        self._weighed = weighed
        self._sizes = sizes

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        for start, stop in spans(sizes):
            yield self._read(start, stop) if stop > start else self._filler()

    def weighed(self) -> Iterator[Batch]:
        assert self._weighed is not None
        # In the sizes of the plan: no more is in memory at once than for a micro-batch.
        for start, stop in spans(self._sizes):
            if stop > start:
                yield self._weighed(start, stop)


def spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each piece."""
    return pairwise(accumulate(sizes, initial=0))


def cut_anew(pieces: Iterator[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """The samples of `pieces` in pieces of other sizes.

    At most one piece more than is handed out is held.
    """
    remaining: list[Batch] = []  # read, and not handed out
    held = 0
    for size in sizes:
        while held < size:
            remaining.append(next(pieces))
            held += batch_size(remaining[-1])
        # Joined only where pieces meet, since torch.cat copies.
        joined = remaining[0] if len(remaining) == 1 else _joined(remaining)
        yield {name: column[:size] for name, column in joined.items()}
        held -= size
        remaining = []
        if held:
            remaining.append({name: column[size:] for name, column in joined.items()})


def batch_size(batch: Batch) -> int:
    """Samples of a batch."""
    return len(next(iter(batch.values())))


def _joined(batches: Sequence[Batch]) -> Batch:
    joined: Batch = {}
    for name in batches[0]:
        joined[name] = torch.cat([batch[name] for batch in batches])
    return joined
