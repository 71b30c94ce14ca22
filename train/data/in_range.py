"""Labels and tokens that a model can have, looked at as they come: those that are not in memory
before the first step.

PyTorch would find a wrong one in the middle of the training: an IndexError, or the end of a GPU's
work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from train.batch import BatchPlan
from train.batch.window import IGNORED, Batch, Place
from train.data.deferred import Deferred
from train.data.packed_stream import PackedStream
from train.data.reading import LABELS, Columns
from train.data.rows import Rows
from train.data.shares import DataError, RankShare, TrainingSet


@dataclass(frozen=True)
class InRange:
    """The same samples. Where one holds a number that no output of the model stands for, DataError
    tells which.
    """

    samples: TrainingSet
    outputs: Mapping[str, int]  # of the model, by the columns whose numbers must be less
    columns: Columns  # by their names in the data

    @property
    def size(self) -> int | None:
        return self.samples.size

    def first(self, seed: int, count: int) -> Batch:
        return self.checked(self.samples.first(seed, count), 0)

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """As data.shares has it."""
        for share in self.samples.shares(plan, seed, rank, place, overfit):
            if isinstance(share.samples, Deferred):
                yield replace(share, check=partial(self.checked, epoch=share.epoch))
            else:
                self.checked(share.samples, share.epoch)
                yield share

    @property
    def is_weighed(self) -> bool:
        return self.samples.is_weighed

    def deferred(self, weighed: Sequence[str]) -> "InRange":
        """As data.shares has it; each is looked at when it is read."""
        return replace(self, samples=self.samples.deferred(weighed))

    def checked(self, batch: Batch, epoch: int) -> Batch:
        for name, outputs in self.outputs.items():
            column = batch.get(name)
            if column is None or not column.numel():  # a rank may have nothing left
                continue
            if column.is_floating_point() and (name != LABELS or not column.equal(column.floor())):
                self._refuse_fractions(name, column, batch["sample_id"])
                continue
            lowest, highest = (end.item() for end in column.aminmax())
            if lowest < 0 or highest >= outputs:
                self._check_each(name, column, outputs, batch["sample_id"], epoch)
        return batch

    def _refuse_fractions(self, name: str, column: Tensor, ids: Tensor) -> None:
        if name != LABELS:
            return
        first = (column != column.floor()).nonzero()[0]
        raise DataError(
            f"sample {ids[first[0]]} holds {column[tuple(first)]:.6g} in {name!r}, where whole "
            "numbers from 0 are needed. For numbers to come near to, type: task=regression"
        )

    def _check_each(self, name: str, column: Tensor, outputs: int, ids: Tensor, epoch: int) -> None:
        wrong = (column < 0) | (column >= outputs)
        if name == LABELS:
            wrong &= column != IGNORED
        if not wrong.any():
            return
        first = wrong.nonzero()[0]
        own = f" (column {self.columns[name]!r})" if name in self.columns else ""
        place = (
            f"the stream, in the order of epoch {epoch},"
            if self.size is None
            else "the training set"
        )
        none = f", and {IGNORED} for none" if name == LABELS else ""
        raise DataError(
            f"sample {ids[first[0]]} of {place} holds {column[tuple(first)]} in {name!r}{own}, but "
            f"the model has {outputs} outputs: it takes 0 to {outputs - 1}{none}. Correct the "
            "data, or change model.args"
        )


def in_range(
    samples: TrainingSet, outputs: Mapping[str, int], columns: Columns, first: Batch
) -> TrainingSet:
    """The samples, watched from the first ones on; those in memory are looked at elsewhere, all of
    them. Raises DataError, also for texts in blocks whose tokenizer has more tokens than the model.
    """
    if isinstance(samples, Rows) or not outputs:
        return samples
    if isinstance(samples, PackedStream):
        vocabulary, least = samples.tokenizer.vocabulary, min(outputs.values())
        if vocabulary > least:
            raise DataError(
                f"the texts of the stream hold tokens from 0 to {vocabulary - 1} (data.tokenizer "
                f"has {vocabulary:,}), but the model has {least} outputs: it takes 0 to "
                f"{least - 1}. It takes a model with {vocabulary} outputs: change model.args (or "
                "type data.streaming=false: then it counts which tokens there are)"
            )
    watched = InRange(samples, outputs, columns)
    watched.checked(first, 0)
    return watched
