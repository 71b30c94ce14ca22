"""Samples of a step that are read when their micro-batch's turn comes: what is in memory follows
the micro-batch.

Their weights are counted one step ahead, from the columns that the task names for it
(Task.weight_columns).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch

from train.batch.window import Batch


class Deferred:
    """One rank's samples of a step, in the order in which they are trained."""

    images: frozenset[str] = frozenset()
    """Columns of images; those of 8 bits are scaled on the device."""
    is_weighed: bool = False
    """Weights can be counted before the samples are read."""

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """The samples in pieces of these sizes, each read when it is asked for; one other sample of
        the step for 0.
        """
        raise NotImplementedError

    def weighed(self) -> Iterator[Batch]:
        """All samples, some at a time, with the columns that their weights are counted from and
        `sample_id`.
        """
        raise NotImplementedError


class DeferredReads(Deferred):
    """Samples that can be read at any time."""

    def __init__(
        self,
        read: Callable[[int, int], Batch],
        filler: Callable[[], Batch],
        weighed: Callable[[int, int], Batch] | None,
        sizes: Sequence[int],
        images: frozenset[str] = frozenset(),
    ) -> None:
        """`read`, `weighed` take (start, stop), places among this rank's samples. `weighed`: None
        where unknown.
        """
        self.images = images
        self.is_weighed = weighed is not None
        self._read = read
        self._filler = filler
        self._weighed = weighed
        self._sizes = sizes

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        return (
            self._read(start, stop) if stop > start else self._filler()
            for start, stop in spans(sizes)
        )

    def weighed(self) -> Iterator[Batch]:
        assert self._weighed is not None
        for start, stop in spans(self._sizes):
            if stop > start:
                yield self._weighed(start, stop)


def spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each piece."""
    return pairwise(accumulate(sizes, initial=0))


def cut_anew(pieces: Iterator[Batch], sizes: Iterable[int]) -> Iterator[Batch]:
    """The samples of `pieces` in pieces of other sizes; of these, at most one more than is handed
    out is held.
    """
    left: list[Batch] = []  # read, and not handed out
    held = 0
    for size in sizes:
        while held < size:
            left.append(next(pieces))
            held += _length(left[-1])
        joined = left[0] if len(left) == 1 else _joined(left)
        yield {name: column[:size] for name, column in joined.items()}
        held -= size
        left = [{name: column[size:] for name, column in joined.items()}] if held else []


def _joined(batches: Sequence[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))
