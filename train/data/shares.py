"""One rank's share of a step, as it was read, before the ranks have agreed on anything about it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat

import torch

from train.batch import Assignment
from train.batch.plan import split_evenly
from train.batch.window import Batch, MicroBatch
from train.data.deferred import Deferred
from train.data.pixels import as_a_task_gets_it, pixels_of
from train.errors import UserError


class DataError(UserError):
    """The data is not what the config says; the message says what to type."""


class Misread(DataError):
    """A DataError whose cause may be how a file was read.

    `fix` is the advice where the arguments of its reader are not at fault.
    """

    def __init__(self, what: str, fix: str, column: str | None = None) -> None:
        super().__init__(f"{what}. {fix}")
        self.what = what
        self.fix = fix
        self.column = column


class MissingValue(Misread):
    """A value is missing, or a word was taken for none."""


@dataclass(kw_only=True)
class RankShare:
    """One rank's samples of a step, and how they are cut into micro-batches.

    These are train.batch.window.MicroBatches.
    """

    epoch: int
    last_of_epoch: bool
    samples: (
        Batch | Deferred
    )  # micro-batch after micro-batch; Deferred: read when they are asked for
    sizes: tuple[int, ...]  # of the micro-batches; 0: nothing left, take the filler
    # One sample of the step; {} where none is needed, or none is read yet.
    filler: Batch = field(default_factory=dict)
    # Columns of 0 to 255, which a task gets as float32 in [0, 1].
    pixels: frozenset[str] = frozenset()
    # Samples of the rank that has the most: none needs more micro-batches than that one.
    largest: int
    of_step: int = 0  # samples, over all ranks
    # In these samples, without what fills a block up; None: samples are no blocks.
    tokens: int | None = None
    trim: Callable[[Batch], Batch] | None = None  # cuts padding off a micro-batch
    # Of samples that are read later; raises DataError.
    check: Callable[[Batch], object] | None = None
    # Cut once, when first asked for: another object would count as another step for the prefetch.
    _micro_batches: tuple[MicroBatch, ...] | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        epoch: int,
        assignment: Assignment,
        samples: Batch | Deferred,
        filler: Batch | None = None,
        pixels: frozenset[str] = frozenset(),
        tokens: int | None = None,
    ) -> "RankShare":
        """The samples of an assignment."""
        return cls(
            epoch=epoch,
            last_of_epoch=assignment.last_of_epoch,
            samples=samples,
            sizes=assignment.sizes,
            filler=filler or {},
            pixels=pixels,
            largest=assignment.largest,
            of_step=assignment.samples,
            tokens=tokens,
        )

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
        """Samples are read when their micro-batch is asked for."""
        return isinstance(self.samples, Deferred)

    @property
    def is_late(self) -> bool:
        """Weights are known when the last micro-batch is read."""
        return isinstance(self.samples, Deferred) and not self.samples.is_weighed

    def weights(self, loss_weight: Callable[[Batch], Mapping[str, float]]) -> Mapping[str, float]:
        """By term of the loss, of all samples; not where they are known late."""
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
        """The same samples in micro-batches of at most `micro` samples."""
        # Of the rank with the most samples, not of this one: all ranks take equally many
        # micro-steps, or one would wait in the reduction for ever.
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
            trim = self.trim or _unchanged
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
            # Checked before it is trimmed: a label behind the end of a text may be wrong too.
            trimmed = batch if self.trim is None else self.trim(batch)
            yield MicroBatch(trimmed, size, pixels_of(batch, samples.images))


def split(samples: Batch, sizes: Sequence[int], filler: Batch) -> tuple[Batch, ...]:
    """A rank's samples, cut into its micro-batches.

    Views; the filler takes the place of an empty one.
    """
    # Nothing to cut: no call for each column.
    if len(sizes) == 1 and sizes[0]:
        return (samples,)
    pieces = {name: torch.split(column, list(sizes)) for name, column in samples.items()}
    batches = []
    for i, size in enumerate(sizes):
        if size:
            batches.append({name: piece[i] for name, piece in pieces.items()})
        else:
            batches.append(filler)
    return tuple(batches)


def _unchanged(batch: Batch) -> Batch:
    return batch
