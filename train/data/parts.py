"""One rank's part of a step, as it was read: the ranks have not compared notes on it yet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from train.batch import Assignment, BatchPlan, assign
from train.batch.order import Ids
from train.window import Batch, Place


class DataError(ValueError):
    """The data is not what the config says; the message says what to type."""


@dataclass(frozen=True)
class Part:
    epoch: int
    last_of_epoch: bool
    share: Batch  # this rank's samples, micro-batch after micro-batch
    sizes: tuple[int, ...]  # of its micro-batches; 0: nothing left, take the filler
    filler: Batch  # one sample of the step; {} where no micro-batch is empty
    batches: tuple[Batch, ...] = ()  # of the micro-batches, where they are not simply pieces of the share


class TrainingSet(Protocol):
    """Samples to train on, in one global order that seed and epoch decide."""

    @property
    def size(self) -> int | None:
        """Samples of an epoch; None where nobody knows before it has ended."""
        ...

    def cast(self, dtype: torch.dtype) -> "TrainingSet":
        """The same samples, floating-point columns in `dtype` where that can be had once for all."""
        ...

    def first(self, seed: int, count: int) -> Batch:
        """The first `count` samples of the first epoch, or all where there are fewer; the same on every rank."""
        ...

    def parts(self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None) -> Iterator[Part]:
        """This rank's parts of one step after the other, for ever, from `place` on.

        `overfit`: the steps 1 .. overfit again and again.
        """
        ...


class EvaluationSet(Protocol):
    """Samples to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """The samples `ids`, in that order, `size` at a time."""
        ...


def pieces(share: Batch, sizes: Sequence[int], filler: Batch) -> tuple[Batch, ...]:
    """The share of a rank, cut into its micro-batches."""
    cut = {name: torch.split(column, list(sizes)) for name, column in share.items()}
    return tuple({name: piece[i] for name, piece in cut.items()} if size else filler for i, size in enumerate(sizes))


def assignments(
    plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
) -> Iterator[tuple[int, Assignment]]:
    """(epoch, which samples) of one step after the other, of data whose size is known; it may begin anywhere."""
    if overfit:
        place = Place(0, place.samples % (overfit * plan.effective))
    epoch, taken = place.epoch, place.samples
    while True:
        found = assign(plan, seed, epoch, taken, rank)
        yield epoch, found
        taken += found.samples
        if found.last_of_epoch or taken == (overfit and overfit * plan.effective):
            epoch, taken = 0 if overfit else epoch + 1, 0
