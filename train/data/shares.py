"""One rank's share of a step, as it was read: the ranks have not agreed on anything about it yet."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Protocol

import torch

from train.batch import Assignment, BatchPlan, assign
from train.batch.order import Ids
from train.batch.plan import split_evenly
from train.batch.window import Batch, MicroBatch, Place
from train.data.pixels import Scaled
from train.errors import UserError


class DataError(UserError):
    """The data is not what the config says; the message says what to type."""


class Misread(DataError):
    """The data is not what the config says, and the cause may be how a file was read: `fix` holds where it was not."""

    def __init__(self, what: str, fix: str, column: str | None = None) -> None:
        super().__init__(f"{what}. {fix}")
        self.what = what
        self.fix = fix
        self.column = column


class Missing(Misread):
    """A value is not there; or a word was taken for none."""


@dataclass(kw_only=True)
class RankShare:
    """One rank's samples of a step, and how they are cut into micro-batches (train.batch.window.MicroBatches)."""

    epoch: int
    last_of_epoch: bool
    samples: Batch  # micro-batch after micro-batch
    sizes: tuple[int, ...]  # of the micro-batches; 0: nothing left, take the filler
    filler: Batch  # one sample of the step; {} where no micro-batch is empty
    pixels: frozenset[str] = frozenset()  # columns of 0 to 255, which a task gets as float32 in [0, 1]
    largest: int  # samples of the rank that has the most: none needs more micro-batches than that one
    of_step: int = 0  # samples, over all ranks
    tokens: int | None = None  # in these samples, without what fills a block up; None: samples are no blocks
    trim: Callable[[Batch], Batch] | None = None  # cuts padding off a micro-batch
    _micro_batches: tuple[MicroBatch, ...] | None = field(default=None, init=False)  # cut once, when first asked for

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._micro_batches is None:
            self._micro_batches = self._cut()
        return iter(self._micro_batches)

    def as_a_task_gets_it(self) -> Batch:
        """All samples; pixels are scaled when a task asks for them, which counts labels as a rule."""
        return Scaled(self.samples, self.pixels) if self.pixels else self.samples

    def recut(self, micro: int) -> "RankShare":
        count = max(1, math.ceil(self.largest / micro))
        sizes = tuple(split_evenly(sum(self.sizes), count))
        if sizes == self.sizes:
            return self  # whose micro-batches may be announced
        # Another cut may need a filler where this one does not; any sample of the step will do.
        filler = self.filler or {name: column[:1] for name, column in self.samples.items()}
        return replace(self, sizes=sizes, filler=filler)

    def placed(self, place: Callable[[Batch], Batch]) -> "RankShare":
        """The same share, its samples where `place` puts a batch, such as into pinned memory.

        Where padding is trimmed, each micro-batch is placed after that, which would copy it to elsewhere.
        """
        if self.trim is None:
            return replace(self, samples=place(self.samples), filler=place(self.filler))
        trim = self.trim
        return replace(self, trim=lambda batch: place(trim(batch)))

    def _cut(self) -> tuple[MicroBatch, ...]:
        batches = split(self.samples, self.sizes, self.filler)
        if self.trim is not None:
            batches = tuple(map(self.trim, batches))
        return tuple(map(MicroBatch, batches, self.sizes, repeat(self.pixels)))


class TrainingSet(Protocol):
    """Samples to train on, in one global order that seed and epoch decide."""

    @property
    def size(self) -> int | None:
        """Samples of an epoch; None where nobody knows before it has ended."""
        ...

    def first(self, seed: int, count: int) -> Batch:
        """The first `count` samples of the first epoch, or all where there are fewer; the same on every rank."""
        ...

    def shares(self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None) -> Iterator[RankShare]:
        """This rank's shares of one step after the other, without end, from `place` on.

        `overfit`: the steps 1 .. overfit again and again.
        """
        ...


class EvaluationSet(Protocol):
    """Samples to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """The samples `ids`, in that order, `size` at a time."""
        ...


def split(samples: Batch, sizes: Sequence[int], filler: Batch) -> tuple[Batch, ...]:
    """A rank's samples, cut into its micro-batches: views, except where the filler takes an empty one's place."""
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
    """(epoch, which samples) of one step after the other, of data whose size is known; it may begin anywhere."""
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
