"""Samples that can be fetched by their number: held in memory, or read from the disk each time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import Batch, Place
from train.data.deferred import DeferredReads
from train.data.pixels import as_a_task_gets_it, pixels_of, scaled
from train.data.protocols import TrainingSet, assignments
from train.data.reading import Picked, Reader, stack
from train.data.shares import RankShare


@dataclass(frozen=True)
class Rows(TrainingSet):
    """A data set in memory, one tensor a column: fetching takes some microseconds a sample."""

    columns: Batch
    # Columns of integers that a task gets as float32 in [0, 1].
    images: frozenset[str] = frozenset()
    # (samples,): of each block, without what fills it up; None: samples are no blocks.
    tokens: Tensor | None = None
    is_deferred: bool = False  # samples are fetched when their micro-batch is asked for
    # With it: the same samples, with the columns that weights are counted from.
    weighing: "Rows | None" = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def size(self) -> int:
        return len(self)

    def pick(self, ids: Ids) -> Picked:
        """The samples `ids`, in that order, as they are stored."""
        # Spread out for the type checker: a dict of tensors is no dict of tensors or lists, as
        # Picked is.
        return {**self._select(torch.from_numpy(ids.copy()))}

    def fetch(self, ids: Ids) -> Batch:
        """The samples `ids`, in that order, with their `sample_id`."""
        return self._fetch(ids, self.images)

    def _fetch(self, ids: Ids, images: frozenset[str]) -> Batch:
        """`images`: columns to scale."""
        # A copy: the index is the batch's sample_id, and `ids` may be a view of another array.
        index = torch.from_numpy(ids.copy())
        batch = self._select(index)
        batch["sample_id"] = index
        for name in images:
            batch[name] = scaled(batch[name])
        return batch

    def _select(self, index: Tensor) -> Batch:
        return {name: column.index_select(0, index) for name, column in self.columns.items()}

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """As train.data.protocols.EvaluationSet."""
        pixels = pixels_of(self.columns, self.images)
        for start in range(0, len(ids), size):
            batch = self._fetch(ids[start : start + size], self.images - pixels)
            yield as_a_task_gets_it(batch, pixels)

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """Any share can be read without those before it."""
        return self.read(assignments(plan, seed, rank, position, overfit))

    @property
    def is_weighed(self) -> bool:
        return self.weighing is not None

    def deferred(self, weighed: Sequence[str]) -> "Rows":
        weighing = self.only(weighed) if weighed and self.has(weighed) else None
        return replace(self, is_deferred=True, weighing=weighing)

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.columns.keys()

    def only(self, names: Sequence[str]) -> "Rows":
        """Without the other columns."""
        columns = {name: self.columns[name] for name in names}
        return Rows(columns, self.images.intersection(names))

    def read(self, steps: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """This rank's shares of steps: (epoch, which samples)."""
        # Images of 8 bits are left as they are: the device scales them.
        pixels = pixels_of(self.columns, self.images)
        fetch = partial(self._fetch, images=self.images - pixels)
        for epoch, assignment in steps:
            tokens = self._tokens_of(assignment.ids)
            if self.is_deferred:
                samples = self._later(assignment, fetch)
                yield RankShare.of(epoch, assignment, samples, tokens=tokens)
                continue
            filler = {}
            if 0 in assignment.sizes:
                filler = fetch(assignment.filler_ids)
            yield RankShare.of(
                epoch,
                assignment,
                fetch(assignment.ids),
                filler=filler,
                pixels=pixels,
                tokens=tokens,
            )

    def _later(self, assignment: Assignment, fetch: Callable[[Ids], Batch]) -> DeferredReads:
        # Only the columns that are needed: to select the others takes time and memory for each
        # sample.
        weighed = None
        if self.weighing is not None:
            weighed = _slices(assignment.ids, self.weighing.fetch)
        return DeferredReads(
            read=_slices(assignment.ids, fetch),
            filler=lambda: fetch(assignment.filler_ids),
            weighed=weighed,
            sizes=assignment.sizes,
            images=self.images,
        )

    def _tokens_of(self, ids: Ids) -> int | None:
        if self.tokens is None:
            return None
        return int(self.tokens[torch.from_numpy(ids.copy())].sum())


@dataclass(frozen=True)
class Table:
    """A data set on the disk: samples are read and decoded each time they are asked for."""

    dataset: Dataset  # its format: arrow
    reader: Reader
    images: frozenset[str]
    rows: Ids  # by which its samples are named in errors: their numbers in the split

    def __len__(self) -> int:
        return len(self.dataset)

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.reader.columns.keys()

    def only(self, names: Sequence[str]) -> "Table":
        """Without the other columns."""
        reader = self.reader.only(names)
        return replace(
            self,
            dataset=self.dataset.select_columns(reader.names),
            reader=reader,
            images=self.images.intersection(names),
        )

    def pick(self, ids: Ids) -> Picked:
        """The samples `ids`, in that order, as they are stored."""
        return self.reader.read(self.dataset[ids], self.dataset.features, self.rows[ids])


def preload(dataset: Dataset, reader: Reader, images: frozenset[str], rows: Ids) -> Rows:
    """Read all of a data set, its format arrow, into memory."""
    return Rows(stack(reader.read(dataset[:], dataset.features, rows), rows), images)


def finished(batch: Batch, images: frozenset[str], ids: Ids | range) -> Batch:
    """As a task gets it: these images scaled, with `sample_id`."""
    complete: Batch = {}
    for name, column in batch.items():
        complete[name] = scaled(column) if name in images else column
    complete["sample_id"] = torch.from_numpy(np.array(ids, dtype=np.int64))
    return complete


def _slices(ids: Ids, fetch: Callable[[Ids], Batch]) -> Callable[[int, int], Batch]:
    """(start, stop) -> those samples of `ids`."""
    return lambda start, stop: fetch(ids[start:stop])
