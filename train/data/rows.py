"""Samples that can be fetched by their place: held in memory, or read from the disk when their turn
comes.
"""

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
from train.data.reading import Picked, Reader, stack
from train.data.shares import RankShare, assignments


@dataclass(frozen=True)
class Rows:
    """A data set in memory, one tensor for each column: fetching costs a few
    microseconds a sample.
    """

    columns: Batch
    # columns of whole numbers that are given out as float32 in [0, 1]
    images: frozenset[str] = frozenset()
    # (samples,): of each block, without what fills it up; None: samples are no blocks
    tokens: Tensor | None = None
    is_deferred: bool = False  # samples are fetched when their micro-batch's turn comes
    # with it: the same samples, with the columns that weights are counted from
    weighing: "Rows | None" = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def size(self) -> int:
        return len(self)

    def pick(self, ids: Ids) -> Picked:
        """The samples `ids`, in that order, as they are stored."""
        index = torch.from_numpy(ids.copy())
        return {name: column.index_select(0, index) for name, column in self.columns.items()}

    def fetch(self, ids: Ids) -> Batch:
        """The samples `ids`, in that order, with their `sample_id`."""
        return self._fetch(ids, self.images)

    def _fetch(self, ids: Ids, images: frozenset[str]) -> Batch:
        index = torch.from_numpy(ids.copy())
        batch = {name: column.index_select(0, index) for name, column in self.columns.items()} | {
            "sample_id": index
        }
        return (
            {name: scaled(c) if name in images else c for name, c in batch.items()}
            if images
            else batch
        )

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        pixels = pixels_of(self.columns, self.images)
        for start in range(0, len(ids), size):
            yield as_a_task_gets_it(
                self._fetch(ids[start : start + size], self.images - pixels), pixels
            )

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """As data.shares has it. Any share can be read without those before it."""
        return self.read(assignments(plan, seed, rank, place, overfit))

    @property
    def is_weighed(self) -> bool:
        return self.weighing is not None

    def deferred(self, weighed: Sequence[str]) -> "Rows":
        """As data.shares has it."""
        weighing = self.only(weighed) if weighed and self.has(weighed) else None
        return replace(self, is_deferred=True, weighing=weighing)

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.columns.keys()

    def only(self, names: Sequence[str]) -> "Rows":
        """Without the other columns."""
        return Rows({name: self.columns[name] for name in names}, self.images.intersection(names))

    def read(self, wanted: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """This rank's shares of the steps that are wanted: (epoch, which samples)."""
        pixels = pixels_of(self.columns, self.images)
        fetch = partial(self._fetch, images=self.images - pixels)
        for epoch, found in wanted:
            if self.is_deferred:
                yield self._deferred(epoch, found, fetch)
                continue
            filler = fetch(found.filler_ids) if 0 in found.sizes else {}
            yield RankShare(
                epoch=epoch,
                last_of_epoch=found.last_of_epoch,
                samples=fetch(found.ids),
                sizes=found.sizes,
                filler=filler,
                pixels=pixels,
                largest=found.largest,
                of_step=found.samples,
                tokens=self.tokens_of(found.ids),
            )

    def _deferred(self, epoch: int, found: Assignment, fetch: Callable[[Ids], Batch]) -> RankShare:
        weighing = self.weighing
        samples = DeferredReads(
            read=lambda start, stop: fetch(found.ids[start:stop]),
            filler=lambda: fetch(found.filler_ids),
            weighed=None
            if weighing is None
            else lambda start, stop: weighing.fetch(found.ids[start:stop]),
            sizes=found.sizes,
            images=self.images,
        )
        return RankShare(
            epoch=epoch,
            last_of_epoch=found.last_of_epoch,
            samples=samples,
            sizes=found.sizes,
            largest=found.largest,
            of_step=found.samples,
            tokens=self.tokens_of(found.ids),
        )

    def tokens_of(self, ids: Ids) -> int | None:
        return None if self.tokens is None else int(self.tokens[torch.from_numpy(ids.copy())].sum())


@dataclass(frozen=True)
class Table:
    """A data set on the disk: samples are read and decoded each time they are asked for."""

    dataset: Dataset  # its format: arrow
    reader: Reader
    images: frozenset[str]
    rows: Ids  # by which its samples are named in errors: their places in the split

    def __len__(self) -> int:
        return len(self.dataset)

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.reader.columns.keys()

    def only(self, names: Sequence[str]) -> "Table":
        """Without the other columns."""
        reader = replace(self.reader, columns={name: self.reader.columns[name] for name in names})
        return Table(
            self.dataset.select_columns(reader.names),
            reader,
            self.images.intersection(names),
            self.rows,
        )

    def pick(self, ids: Ids) -> Picked:
        """The samples `ids`, in that order, as they are stored."""
        return self.reader.read(self.dataset[ids], self.dataset.features, self.rows[ids])


def preload(dataset: Dataset, reader: Reader, images: frozenset[str], rows: Ids) -> Rows:
    """Read all of a data set, its format arrow, into memory."""
    return Rows(stack(reader.read(dataset[:], dataset.features, rows), rows), images)


def finished(batch: Batch, images: frozenset[str], ids: Ids | range) -> Batch:
    """As a task gets it: images scaled, `sample_id` told."""
    floats: dict[str, Tensor] = {
        name: scaled(c) if name in images else c for name, c in batch.items()
    }
    return floats | {"sample_id": torch.from_numpy(np.array(ids, dtype=np.int64))}
