"""One rank's share of a step, as it was read: the ranks have not agreed on anything
about it yet.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Protocol

import torch

from train.batch import Assignment, BatchPlan, assign
from train.batch.order import Ids
from train.batch.plan import split_evenly
from train.batch.window import Batch, MicroBatch, Place
from train.data.deferred import Deferred
from train.data.pixels import as_a_task_gets_it, pixels_of
from train.errors import UserError


class DataError(UserError):
    """The data is not what the config says; the message says what to type."""


class Misread(DataError):
    """The data is not what the config says, and the cause may be how a file was read: `fix` holds
    where it was not.
    """

    def __init__(self, what: str, fix: str, column: str | None = None) -> None:
        super().__init__(f"{what}. {fix}")
        self.what = what
        self.fix = fix
        self.column = column


class Missing(Misread):
    """A value is not there; or a word was taken for none."""


@dataclass(kw_only=True)
class RankShare:
    """One rank's samples of a step, and how they are cut into micro-batches
    (train.batch.window.MicroBatches).
    """

    epoch: int
    last_of_epoch: bool
    samples: Batch | Deferred  # micro-batch after micro-batch; Deferred: read when its turn comes
    sizes: tuple[int, ...]  # of the micro-batches; 0: nothing left, take the filler
    # one sample of the step; {} where none is needed, or none is read yet
    filler: Batch = field(default_factory=dict)
    # columns of 0 to 255, which a task gets as float32 in [0, 1]
    pixels: frozenset[str] = frozenset()
    # samples of the rank that has the most: none needs more micro-batches than that one
    largest: int
    of_step: int = 0  # samples, over all ranks
    # in these samples, without what fills a block up; None: samples are no blocks
    tokens: int | None = None
    trim: Callable[[Batch], Batch] | None = None  # cuts padding off a micro-batch
    # of samples that are read later; raises DataError
    check: Callable[[Batch], object] | None = None
    # cut once, when first asked for
    _micro_batches: tuple[MicroBatch, ...] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[MicroBatch]:
        if isinstance(self.samples, Deferred):
            return self._read(self.samples)
        if self._micro_batches is None:
            self._micro_batches = self._cut(self.samples)
        return iter(self._micro_batches)

    @property
    def is_deferred(self) -> bool:
        """Samples are read when their micro-batch's turn comes."""
        return isinstance(self.samples, Deferred)

    @property
    def is_late(self) -> bool:
        """Weights are known when the last micro-batch is read."""
        return isinstance(self.samples, Deferred) and not self.samples.is_weighed

    def weights(self, loss_weight: Callable[[Batch], Mapping[str, float]]) -> Mapping[str, float]:
        """By term, of all samples, unless they are known late."""
        if not isinstance(self.samples, Deferred):
            return loss_weight(as_a_task_gets_it(self.samples, self.pixels))
        sums: dict[str, float] = {}
        for batch in self.samples.weighed():
            if self.check is not None:
                self.check(batch)
            for term, weight in loss_weight(batch).items():
                sums[term] = sums.get(term, 0.0) + weight
        return sums

    def recut(self, micro: int) -> "RankShare":
        count = max(1, math.ceil(self.largest / micro))
        sizes = tuple(split_evenly(sum(self.sizes), count))
        if sizes == self.sizes:
            return self  # whose micro-batches may be announced
        if isinstance(self.samples, Deferred):
            return replace(self, sizes=sizes)
        # Another cut may need a filler where this one does not; any sample of the step will do.
        filler = self.filler or {name: column[:1] for name, column in self.samples.items()}
        return replace(self, sizes=sizes, filler=filler)

    def placed(self, place: Callable[[Batch], Batch]) -> "RankShare":
        """The same share, its samples where `place` puts a batch, such as into pinned memory.

        Each micro-batch by itself where it is read later, or its padding trimmed, which would copy
        it to elsewhere.
        """
        if isinstance(self.samples, Deferred) or self.trim is not None:
            trim = self.trim or _as_it_is
            return replace(self, trim=lambda batch: place(trim(batch)))
        return replace(self, samples=place(self.samples), filler=place(self.filler))

    def _cut(self, samples: Batch) -> tuple[MicroBatch, ...]:
        batches = split(samples, self.sizes, self.filler)
        if self.trim is not None:
            batches = tuple(map(self.trim, batches))
        return tuple(map(MicroBatch, batches, self.sizes, repeat(self.pixels)))

    def _read(self, samples: Deferred) -> Iterator[MicroBatch]:
        for size, batch in zip(self.sizes, samples.pieces(self.sizes), strict=True):
            if self.check is not None:
                self.check(batch)
            cut = batch if self.trim is None else self.trim(batch)
            yield MicroBatch(cut, size, pixels_of(batch, samples.images))


def _as_it_is(batch: Batch) -> Batch:
    return batch


class TrainingSet(Protocol):
    """Samples to train on, in one global order that seed and epoch decide."""

    @property
    def size(self) -> int | None:
        """Samples of an epoch; None where nobody knows before it has ended."""
        ...

    def first(self, seed: int, count: int) -> Batch:
        """The first `count` samples of the first epoch, or all where there are fewer; the same on
        every rank.
        """
        ...

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """This rank's shares of one step after the other, without end, from `place` on.

        `overfit`: the steps 1 .. overfit again and again.
        """
        ...

    def deferred(self, weighed: Sequence[str]) -> "TrainingSet":
        """The same samples, read when their micro-batch's turn comes.

        `weighed`: the columns that their weights are counted from, which are read ahead.
        """
        ...

    @property
    def is_weighed(self) -> bool:
        """Of deferred samples: the columns of their weights can be had without the others. Else the
        weights of a step are unknown until its last micro-batch is read.
        """
        ...


class EvaluationSet(Protocol):
    """Samples to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """The samples `ids`, in that order, `size` at a time."""
        ...


def split(samples: Batch, sizes: Sequence[int], filler: Batch) -> tuple[Batch, ...]:
    """A rank's samples, cut into its micro-batches: views, except where the filler takes an empty
    one's place.
    """
    if len(sizes) == 1 and sizes[0]:
        return (samples,)
    pieces = {name: torch.split(column, list(sizes)) for name, column in samples.items()}
    batches = []
    for i, size in enumerate(sizes):
        batches.append({name: piece[i] for name, piece in pieces.items()} if size else filler)
    return tuple(batches)


def assignments(
    plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
) -> Iterator[tuple[int, Assignment]]:
    """(epoch, which samples) of one step after the other, of data whose size is known; it may begin
    anywhere.
    """
    if overfit:
        place = Place(0, place.samples % (overfit * plan.effective))
    epoch, taken, seen = place.epoch, place.samples, place.seen
    while True:
        found = assign(plan.at(seen) if plan.stages else plan, seed, epoch, taken, rank)
        yield epoch, found
        taken += found.samples
        seen += found.samples
        if found.last_of_epoch or taken == (overfit and overfit * plan.effective):
            epoch, taken = 0 if overfit else epoch + 1, 0
