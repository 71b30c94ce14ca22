"""Columns of an Arrow table as arrays and tensors, their numbers as they are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds
import torch
from datasets import Features, Value
from datasets.formatting import get_formatter
from numpy.typing import NDArray
from torch import Tensor

from train.batch.order import Ids
from train.data.even_lists import arrays_of_one_shape
from train.data.shares import DataError

Rows: TypeAlias = Sequence[int] | Ids | range
"""Numbers by which rows are named in an error."""


@dataclass(frozen=True)
class ArrowTable:
    arrow: pa.Table
    features: Features  # how datasets understands its columns
    rows: Ids | range  # their numbers

    def kind(self, name: str) -> pa.DataType:
        return self.arrow.schema.field(name).type

    def values(self, name: str) -> list[Any]:
        """A column as Arrow stores it: images undecoded, classes as their numbers."""
        values: list[Any] = self.arrow.column(name).to_pylist()
        return values

    def numbers(self, name: str) -> object:
        """A column as NumPy has it, its numbers as they are stored.

        By default, datasets (5.2) makes float32 of float64 and int64 of uint8, without a warning.
        """
        kind = self.kind(name)
        if kinds.is_decimal(kind):
            # NumPy has no decimals: they would be Python objects there.
            return self.arrow.column(name).cast(pa.float64()).to_numpy()
        while hasattr(kind, "value_type"):  # a list of lists of ...
            kind = kind.value_type
        options = {}
        # The type is named, since datasets (5.2) by default makes float32 of float64 and int64 of
        # uint8, without a warning.
        if kinds.is_integer(kind) or kinds.is_floating(kind):
            arrays = arrays_of_one_shape(self.arrow.column(name))
            if arrays is not None:
                return arrays
            options["dtype"] = kind.to_pandas_dtype()
        features = Features({name: self.features[name]})
        formatter = get_formatter("numpy", features=features, **options)
        return formatter.format_column(self.arrow.select([name]))


def is_text(kind: pa.DataType) -> bool:
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def is_text_value(feature: Any) -> bool:
    """Of a column as datasets has it."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def side_by_side(table: ArrowTable, columns: Sequence[str]) -> Tensor:
    """(rows, columns), floating-point whatever the columns are: they are inputs."""
    arrays = []
    for name in columns:
        if is_text(table.kind(name)):  # train.data.checks has seen that they are numbers
            arrays.append(np.array([float(text) for text in table.values(name)]))
            continue
        values = np.asarray(table.numbers(name))
        if values.ndim != 1 or not _is_numeric(values):
            raise DataError(
                f"column {name!r} holds {table.kind(name)}, and columns side by side must hold one "
                "number in each row. Leave it out of data.columns, or make numbers of it in a "
                "function that data.source names"
            )
        arrays.append(values)
    # float64 where a column needs it: large integers, or numbers that are stored so.
    kind = np.result_type(np.float32, *(array.dtype for array in arrays))
    return torch.from_numpy(np.stack(arrays, axis=1).astype(kind))


def as_tensor(name: str, values: object, rows: Rows) -> Tensor:
    array = np.asarray(values)
    # NumPy makes objects of rows of several shapes.
    if array.dtype == object:
        raise _uneven(name, array, rows)
    if not _is_numeric(array):
        raise DataError(
            f"column {name!r} holds {array.dtype}, not numbers. Say which column is what: "
            "data.columns={inputs: NAME}"
        )
    # A copy: Arrow's own memory is not to be written to.
    return torch.from_numpy(np.array(array))


def _is_numeric(array: NDArray[Any]) -> bool:
    return np.issubdtype(array.dtype, np.number) or array.dtype == bool


def _uneven(name: str, array: NDArray[Any], rows: Rows) -> DataError:
    first = np.asarray(array[0])
    where = ""
    for row, value in zip(rows, array, strict=True):
        if np.shape(value) != first.shape:
            where = f", and row {row} is of another shape"
            break
    return DataError(
        f"column {name!r} does not hold one array of numbers per sample, all of one shape: its "
        f"first value is of type {type(array[0]).__name__}, shape {first.shape}{where}. "
        "Say which column is what: data.columns={inputs: NAME}"
    )
