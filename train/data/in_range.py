"""Labels and tokens checked against the model's outputs as they are read.

For samples that are not in memory before the first step. PyTorch would find a wrong one in the
middle of the training: an IndexError, or the end of a GPU's work.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from train.batch import BatchPlan
from train.batch.window import IGNORED, Batch, Place
from train.data.columns import Columns
from train.data.deferred import Deferred
from train.data.packed_stream import PackedStream
from train.data.protocols import TrainingSet
from train.data.reading import LABELS
from train.data.rows import Rows
from train.data.shares import DataError, RankShare


@dataclass(frozen=True)
class InRange(TrainingSet):
    """The same samples; raises DataError for one with a number that the model has no output for."""

    samples: TrainingSet
    outputs: Mapping[str, int]  # of the model, by the columns whose numbers must be less
    columns: Columns  # by their names in the data

    @property
    def size(self) -> int | None:
        return self.samples.size

    def first(self, seed: int, count: int) -> Batch:
        return self.checked(self.samples.first(seed, count), 0)

    def trial(self, seed: int, count: int) -> Batch:
        return self.checked(self.samples.trial(seed, count), 0)

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        for share in self.samples.shares(plan, seed, rank, position, overfit):
            # Not read yet: each micro-batch is checked when it is.
            if isinstance(share.samples, Deferred):
                yield replace(share, check=partial(self.checked, epoch=share.epoch))
            else:
                self.checked(share.samples, share.epoch)
                yield share

    @property
    def is_weighed(self) -> bool:
        return self.samples.is_weighed

    def deferred(self, weighed: Sequence[str]) -> "InRange":
        """Each sample is checked when it is read."""
        return replace(self, samples=self.samples.deferred(weighed))

    def one_step(self, plan: BatchPlan, seed: int) -> "InRange":
        return replace(self, samples=self.samples.one_step(plan, seed))

    def micro_steps(self, plan: BatchPlan) -> tuple[int, int] | None:
        return self.samples.micro_steps(plan)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.samples.notes

    @property
    def trim(self) -> Callable[[Batch], Batch] | None:
        return self.samples.trim

    @property
    def innermost(self) -> TrainingSet:
        return self.samples.innermost

    def checked(self, batch: Batch, epoch: int) -> Batch:
        """The same batch."""
        for name, outputs in self.outputs.items():
            column = batch.get(name)
            if column is None or not column.numel():  # a rank may have nothing left
                continue
            # Floats under another name than that of the labels are numbers that enter the model as
            # they are: no tokens.
            if column.is_floating_point():
                if name != LABELS:
                    continue
                self._check_whole(name, column, batch)
            # Two numbers first: each label is looked at only where one of them is out of range,
            # which IGNORED is too.
            lowest, highest = column.aminmax()
            if lowest.item() < 0 or highest.item() >= outputs:
                self._check_each(name, column, outputs, batch["sample_id"], epoch)
        return batch

    def _check_whole(self, name: str, column: Tensor, batch: Batch) -> None:
        fractions = column != column.floor()
        if not fractions.any():
            return
        first = fractions.nonzero()[0]
        ids = batch["sample_id"]
        raise DataError(
            f"sample {ids[first[0]]} holds {column[tuple(first)]:.6g} in {name!r}, where whole "
            "numbers from 0 are needed. For numbers to come near to, set: task=regression"
        )

    def _check_each(self, name: str, column: Tensor, outputs: int, ids: Tensor, epoch: int) -> None:
        wrong = (column < 0) | (column >= outputs)
        if name == LABELS:
            wrong &= column != IGNORED
        if not wrong.any():
            return
        first = wrong.nonzero()[0]
        column_of_data = f" (column {self.columns[name]!r})" if name in self.columns else ""
        source = "the training set"
        if self.size is None:
            source = f"the stream, in the order of epoch {epoch},"
        ignored = f", and {IGNORED} for none" if name == LABELS else ""
        raise DataError(
            f"sample {ids[first[0]]} of {source} holds {column[tuple(first)]} in {name!r}"
            f"{column_of_data}, but the model has {outputs} outputs: it takes 0 to {outputs - 1}"
            f"{ignored}. Correct the data, or change model.args"
        )


def in_range(
    samples: TrainingSet, outputs: Mapping[str, int], columns: Columns, first: Batch
) -> TrainingSet:
    """The samples, checked from the first ones on; those in memory are checked elsewhere, all.

    Raises DataError, also for texts in blocks whose tokenizer has more tokens than the model.
    """
    if isinstance(samples, Rows) or not outputs:
        return samples
    # Nobody reads a stream beforehand: what its tokenizer may give counts, not what it has given.
    if isinstance(samples, PackedStream):
        vocabulary = samples.tokenizer.vocabulary
        fewest = min(outputs.values())
        if vocabulary > fewest:
            raise DataError(
                f"the texts of the stream hold tokens from 0 to {vocabulary - 1} (data.tokenizer "
                f"has {vocabulary:,}), but the model has {fewest} outputs: it takes 0 to "
                f"{fewest - 1}. It takes a model with {vocabulary} outputs: change model.args (or "
                "set data.streaming=false: then it counts which tokens there are)"
            )
    checked = InRange(samples, outputs, columns)
    checked.checked(first, 0)
    return checked
