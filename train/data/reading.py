"""Columns of a data set as tensors, under the names that the task asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
import torch
from datasets import ClassLabel, Features, Image, Value
from datasets.formatting import get_formatter
from numpy.typing import NDArray
from torch import Tensor

from train.batch.order import Ids
from train.batch.window import MASK, Batch
from train.config.recipe import ImageForm
from train.data.even_lists import arrays_of_one_shape
from train.data.image_reading import AS_STORED, one_form, pixels
from train.data.pixels import scaled
from train.data.shares import DataError
from train.data.tokenizers import Saved, TokenizerError
from train.errors import some

INPUTS = "inputs"
LABELS = "labels"
"""The name under which text stands for a class."""
PADDING = 256
"""What fills a text up to data.max_length: the token after those of the 256 bytes."""

SHOWN = 8  # classes that are named

Columns = Mapping[str, str | Sequence[str]]
"""{name that the task asks for: name in the data, or several: their numbers side by side}."""
Column: TypeAlias = Tensor | list[Tensor]
Picked: TypeAlias = dict[str, Column]
"""Samples by column; images, which may differ in size, one by one."""


@dataclass(frozen=True)
class Reader:
    columns: Columns
    # by task's name; their order is their number
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_length: int | None = None  # tokens of a text
    tokenizer: Saved | None = None  # else a text is its bytes
    # columns of the data that hold the tokens of texts in their place
    texts: frozenset[str] = frozenset()
    image: ImageForm = AS_STORED  # what images become

    @property
    def padding(self) -> int:
        """The token that fills a text up to max_length."""
        return PADDING if self.tokenizer is None else self.tokenizer.padding

    @property
    def names(self) -> list[str]:
        """The columns that are read, in the words of the data."""
        every = [
            [names] if isinstance(names, str) else list(names) for names in self.columns.values()
        ]
        return list(dict.fromkeys(name for names in every for name in names))

    def read(self, table: pa.Table, features: Features, rows: Ids | range) -> Picked:
        """All of a table; `rows` are the numbers by which its rows are named in an error."""
        read = _Table(table, features, rows)
        picked: Picked = {}
        for name, own in self.columns.items():
            column = self._column(read, name, own)
            if isinstance(column, _Texts):
                picked[name] = column.tokens
                if mask_of(name) not in self.columns:
                    picked[mask_of(name)] = column.mask
            else:
                picked[name] = column
        return picked

    def _column(self, table: "_Table", name: str, own: str | Sequence[str]) -> "Column | _Texts":
        if not isinstance(own, str):
            return _side_by_side(table, own)
        feature = table.features[own]
        if isinstance(feature, Image):
            values = zip(table.values(own), table.rows, strict=True)
            return [pixels(feature, value, own, row, self.image) for value, row in values]
        kind = table.kind(own)
        if own in self.texts and not is_text(kind):
            tokens = table.arrow.column(own)
            return self._filled_up(
                pc.list_flatten(tokens).to_numpy(), pc.list_value_length(tokens).to_numpy()
            )
        if name in self.classes:
            return self._classes(table, name, own)
        if is_text(kind) and name == LABELS:
            raise DataError(
                f"column {own!r} holds text, and which classes there are is not known before a "
                "stream has ended. Write their numbers into the data, or load it: "
                "data.streaming=false"
            )
        if is_text(kind):
            return self._tokens(table, own)
        tensor = _tensor(own, table.numbers(own), table.rows)
        is_whole = name == LABELS and not tensor.is_floating_point()
        return tensor.long() if is_whole else tensor  # torch's losses take no shorter whole numbers

    def _classes(self, table: "_Table", name: str, own: str) -> Tensor:
        feature, values = table.features[own], table.values(own)
        if isinstance(feature, ClassLabel):
            if list(feature.names) == list(self.classes[name]):
                return torch.tensor(values, dtype=torch.int64)
            values = [
                feature.names[value] if value is not None and value >= 0 else value
                for value in values
            ]
        known = {text: number for number, text in enumerate(self.classes[name])}
        for value, row in zip(values, table.rows, strict=True):
            if value not in known:
                raise DataError(
                    f"column {own!r} is {value!r} in row {row}, a class that the training split "
                    f"has not: {some(self.classes[name], SHOWN)}"
                )
        return torch.tensor([known[value] for value in values], dtype=torch.int64)

    def _tokens(self, table: "_Table", own: str) -> "_Texts":
        if self.max_length is None:
            raise DataError(
                f"column {own!r} holds text, not numbers. Type: data.max_length=256 for its first "
                f"256 bytes as tokens (or, where it names the classes: 'data.columns={{{LABELS}: "
                f"{own}}}')"
            )
        if self.tokenizer is not None:
            try:
                cut = [
                    self.tokenizer.encode_one(text, self.max_length) for text in table.values(own)
                ]
            except TokenizerError as error:
                raise DataError(f"data.tokenizer: {error}") from error
        else:
            encoded = [text.encode()[: self.max_length] for text in table.values(own)]
            cut = [np.frombuffer(text, dtype=np.uint8).astype(np.int32) for text in encoded]
        lengths = np.array([len(text) for text in cut], dtype=np.int64)
        return self._filled_up(np.concatenate(cut) if cut else np.empty(0, np.int32), lengths)

    def _filled_up(self, tokens: NDArray[Any], lengths: NDArray[Any]) -> "_Texts":
        """`tokens` of all texts, one after the other, and how many each of them has."""
        size = self.max_length or 0
        places, ends = np.arange(size), lengths[:, None]
        on_the_left = self.tokenizer is not None and self.tokenizer.pads_left
        mask = places >= size - ends if on_the_left else places < ends
        filled = np.full(mask.shape, self.padding, dtype=np.int64)
        filled[mask] = tokens
        return _Texts(torch.from_numpy(filled), torch.from_numpy(mask))


@dataclass(frozen=True)
class _Texts:
    tokens: Tensor  # (rows, max_length)
    mask: Tensor  # of the same shape: which of them belong to the text


@dataclass(frozen=True)
class _Table:
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
        """A column as NumPy has it, its numbers as they are stored: left to itself, datasets (5.2)
        makes float32 of float64 and int64 of uint8, without a word.
        """
        kind = self.kind(name)
        if kinds.is_decimal(kind):
            return self.arrow.column(name).cast(pa.float64()).to_numpy()
        while hasattr(kind, "value_type"):  # a list of lists of ...
            kind = kind.value_type
        plain = kinds.is_integer(kind) or kinds.is_floating(kind)
        if plain:
            even = arrays_of_one_shape(self.arrow.column(name))
            if even is not None:
                return even
        stored = {"dtype": kind.to_pandas_dtype()} if plain else {}
        features = Features({name: self.features[name]})
        return get_formatter("numpy", features=features, **stored).format_column(
            self.arrow.select([name])
        )


def stack(
    picked: Mapping[str, Column], rows: Sequence[int] | Ids | range, made_by: str | None = None
) -> Batch:
    """One tensor for each column. Raises DataError for a sample of another shape.

    `made_by`: the key that names what has made the samples; None: lists are images as the reader
    has them.
    """
    return {
        name: c if isinstance(c, Tensor) else _stacked(name, c, rows, made_by)
        for name, c in picked.items()
    }


def mask_of(column: str) -> str:
    """The name of the column that says which tokens of a column of texts belong to the text."""
    return MASK if column == INPUTS else f"{column}_{MASK}"


def is_text(kind: pa.DataType) -> bool:
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def is_text_value(feature: Any) -> bool:
    """Of a column as datasets has it."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _stacked(
    name: str, samples: list[Tensor], rows: Sequence[int] | Ids | range, made_by: str | None
) -> Tensor:
    for sample, row in zip(samples, rows, strict=True):
        if sample.shape != samples[0].shape:
            how = (
                f"{made_by} must give them one"
                if made_by
                else one_form([tuple(each.shape) for each in samples])
            )
            raise DataError(
                f"{name}: row {row} is of shape {tuple(sample.shape)}, row {rows[0]} of "
                f"{tuple(samples[0].shape)}; the samples of a batch must be of one shape. {how}"
            )
    if len({sample.dtype for sample in samples}) > 1 and not made_by:
        # images of 8 bits beside those of 16, or of floats
        samples = [scaled(sample) for sample in samples]
    return torch.stack(samples)


def _side_by_side(table: "_Table", own: Sequence[str]) -> Tensor:
    """(rows, columns), floating-point whatever the columns are: they are inputs."""
    columns = []
    for name in own:
        if is_text(table.kind(name)):  # data.checks has seen that they are numbers
            columns.append(np.array([float(text) for text in table.values(name)]))
            continue
        values = np.asarray(table.numbers(name))
        if values.ndim != 1 or not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            raise DataError(
                f"column {name!r} holds {table.kind(name)}, and columns side by side must hold one "
                "number in each row. Leave it out of data.columns, or make numbers of it in a "
                "function that data.source names"
            )
        columns.append(values)
    kind = np.result_type(np.float32, *(column.dtype for column in columns))
    return torch.from_numpy(np.stack(columns, axis=1).astype(kind))


def _tensor(name: str, values: object, rows: Ids | range) -> Tensor:
    array = np.asarray(values)
    if array.dtype == object:
        first = np.asarray(array[0])
        others = (
            row for row, value in zip(rows, array, strict=True) if np.shape(value) != first.shape
        )
        other = next(others, None)
        where = "" if other is None else f", and row {other} is of another shape"
        raise DataError(
            f"column {name!r} does not hold one array of numbers per sample, all of one shape: its "
            f"first value is of type {type(array[0]).__name__}, shape {first.shape}{where}. "
            f"Say which column is what: data.columns={{inputs: NAME}}"
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise DataError(
            f"column {name!r} holds {array.dtype}, not numbers. Say which column is what: "
            "data.columns={inputs: NAME}"
        )
    return torch.from_numpy(np.array(array))
