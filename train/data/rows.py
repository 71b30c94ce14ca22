"""Samples that can be fetched by their place."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from pyarrow.types import is_floating, is_integer

from train.batch import BatchPlan, assign, sample_ids
from train.batch.order import Ids
from train.data.parts import DataError, Part
from train.window import Batch, Place


@dataclass(frozen=True)
class Rows:
    """A data set in memory, one tensor for each column: fetching costs a few microseconds a sample."""

    columns: Batch

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def size(self) -> int:
        return len(self)

    def cast(self, dtype: torch.dtype) -> "Rows":
        """Floating-point columns in `dtype`, so that a step need not convert what it copies to a GPU."""
        return Rows({n: c.to(dtype) if c.is_floating_point() else c for n, c in self.columns.items()})

    def fetch(self, ids: Ids) -> Batch:
        """The samples `ids`, in that order, with their `sample_id`."""
        index = torch.from_numpy(ids.copy())
        return {name: column.index_select(0, index) for name, column in self.columns.items()} | {"sample_id": index}

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    def parts(self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None) -> Iterator[Part]:
        """As data.parts has it. Any part can be read without those before it."""
        if overfit:
            place = Place(0, place.samples % (overfit * plan.effective))
        while True:
            found = assign(plan, seed, place.epoch, place.samples, rank)
            filler = self.fetch(found.filler_ids) if 0 in found.sizes else {}
            yield Part(place.epoch, found.last_of_epoch, self.fetch(found.ids), found.sizes, filler)
            taken = place.samples + found.samples
            if found.last_of_epoch or taken == (overfit and overfit * plan.effective):
                place = Place(0 if overfit else place.epoch + 1)
            else:
                place = Place(place.epoch, taken)


def preload(dataset: Dataset, names: Sequence[str]) -> Rows:
    """Read the columns `names` into memory. Raises DataError for a column that is no array of numbers."""
    return Rows({name: _tensor(name, _column(dataset, name)) for name in names})


def _column(dataset: Dataset, name: str) -> object:
    """A column as NumPy has it, its numbers as they are stored: left to itself, datasets (5.2) makes float32 of float64
    and int64 of uint8, without a word."""
    kind = dataset.features.arrow_schema.field(name).type
    while hasattr(kind, "value_type"):  # a list of lists of ...
        kind = kind.value_type
    stored = {"dtype": kind.to_pandas_dtype()} if is_integer(kind) or is_floating(kind) else {}
    return dataset.select_columns([name]).with_format("numpy", **stored)[:][name]


def _tensor(name: str, values: object) -> torch.Tensor:
    array = np.asarray(values)
    if array.dtype == object:
        first = np.asarray(array[0])
        raise DataError(
            f"column {name!r} does not hold one array of numbers per sample, all of one shape: its first value is of "
            f"type {type(array[0]).__name__}, shape {first.shape}. "
            f"Say which column is what: data.columns={{inputs: NAME}}"
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise DataError(
            f"column {name!r} holds {array.dtype}, not numbers. Say which column is what: data.columns={{inputs: NAME}}"
        )
    return torch.from_numpy(np.array(array))
