"""Columns of a data set as tensors, under the names that the task asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Features, Image
from numpy.typing import NDArray
from torch import Tensor

from train.batch.order import Ids
from train.batch.window import MASK, Batch
from train.config.recipe import ImageForm
from train.data.arrow_table import ArrowTable, Rows, as_tensor, is_text, side_by_side
from train.data.columns import Columns, flat_columns
from train.data.image_reading import AS_STORED, advise_one_form, read_image
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

Column: TypeAlias = Tensor | list[Tensor]
Picked: TypeAlias = dict[str, Column]
"""Samples by column; images, which may differ in size, one by one."""


@dataclass(frozen=True)
class Reader:
    """How the rows of a table become the columns of a task."""

    columns: Columns
    # By the task's name of the column; the order of the classes is that of their numbers.
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_length: int | None = None  # tokens of a text
    tokenizer: Saved | None = None  # else a text is its bytes
    # Columns of the data that hold the tokens of texts in their place.
    texts: frozenset[str] = frozenset()
    image: ImageForm = AS_STORED  # what images become

    @property
    def padding(self) -> int:
        """The token that fills a text up to max_length."""
        return PADDING if self.tokenizer is None else self.tokenizer.padding

    @property
    def names(self) -> list[str]:
        """The columns that are read, by their names in the data."""
        return flat_columns(self.columns)

    def only(self, names: Sequence[str]) -> "Reader":
        """Without the other columns of the task."""
        return replace(self, columns={name: self.columns[name] for name in names})

    def read(self, table: pa.Table, features: Features, rows: Ids | range) -> Picked:
        """All rows of a table."""
        source = ArrowTable(table, features, rows)
        picked: Picked = {}
        for name, columns in self.columns.items():
            column = self._column(source, name, columns)
            if isinstance(column, _Texts):
                picked[name] = column.tokens
                # A mask in the data was asked for by its name, and comes before that of the
                # lengths.
                if mask_of(name) not in self.columns:
                    picked[mask_of(name)] = column.mask
            else:
                picked[name] = column
        return picked

    def _column(
        self, table: ArrowTable, name: str, columns: str | Sequence[str]
    ) -> "Column | _Texts":
        if not isinstance(columns, str):
            return side_by_side(table, columns)
        feature = table.features[columns]
        if isinstance(feature, Image):
            return self._images(table, feature, columns)
        # Columns that were tokenised beforehand hold lists of tokens; those of a stream still hold
        # text.
        kind = table.kind(columns)
        if columns in self.texts and not is_text(kind):
            tokens = table.arrow.column(columns)
            return self._filled_up(
                pc.list_flatten(tokens).to_numpy(), pc.list_value_length(tokens).to_numpy()
            )
        if name in self.classes:
            return self._classes(table, name, columns)
        if is_text(kind) and name == LABELS:
            raise DataError(
                f"column {columns!r} holds text, and which classes there are is not known before a "
                "stream has ended. Write their numbers into the data, or load it: "
                "data.streaming=false"
            )
        if is_text(kind):
            return self._tokens(table, columns)
        tensor = as_tensor(columns, table.numbers(columns), table.rows)
        if name == LABELS and not tensor.is_floating_point():
            return tensor.long()  # torch's losses take no shorter integers
        return tensor

    def _images(self, table: ArrowTable, feature: Image, column: str) -> list[Tensor]:
        images = []
        for value, row in zip(table.values(column), table.rows, strict=True):
            images.append(read_image(feature, value, column, row, self.image))
        return images

    def _classes(self, table: ArrowTable, name: str, column: str) -> Tensor:
        feature = table.features[column]
        values = table.values(column)
        if isinstance(feature, ClassLabel):
            if list(feature.names) == list(self.classes[name]):
                return torch.tensor(values, dtype=torch.int64)
            # The split numbers its classes in another way than the training split.
            values = [_class_name(feature, value) for value in values]
        numbers = {text: number for number, text in enumerate(self.classes[name])}
        for value, row in zip(values, table.rows, strict=True):
            if value not in numbers:
                raise DataError(
                    f"column {column!r} is {value!r} in row {row}, a class that the training split "
                    f"has not: {some(self.classes[name], SHOWN)}"
                )
        return torch.tensor([numbers[value] for value in values], dtype=torch.int64)

    def _tokens(self, table: ArrowTable, column: str) -> "_Texts":
        if self.max_length is None:
            raise DataError(
                f"column {column!r} holds text, not numbers. Set: data.max_length=256 for its "
                "first 256 bytes as tokens (or, where it names the classes: "
                f"'data.columns={{{LABELS}: {column}}}')"
            )
        texts = table.values(column)
        if self.tokenizer is not None:
            try:
                tokens = [self.tokenizer.encode_one(text, self.max_length) for text in texts]
            except TokenizerError as error:
                raise DataError(f"data.tokenizer: {error}") from error
        else:
            tokens = [_bytes_of(text, self.max_length) for text in texts]
        lengths = np.array([len(of_text) for of_text in tokens], dtype=np.int64)
        joined = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        return self._filled_up(joined, lengths)

    def _filled_up(self, tokens: NDArray[Any], lengths: NDArray[Any]) -> "_Texts":
        """`tokens` of all texts, one after the other, and how many each of them has."""
        size = self.max_length or 0
        positions = np.arange(size)
        ends = lengths[:, None]
        if self.tokenizer is not None and self.tokenizer.pads_left:
            mask = positions >= size - ends
        else:
            mask = positions < ends
        # (rows, max_length). A mask is filled row by row: in the order in which the tokens are
        # joined.
        filled = np.full(mask.shape, self.padding, dtype=np.int64)
        filled[mask] = tokens
        return _Texts(torch.from_numpy(filled), torch.from_numpy(mask))


@dataclass(frozen=True)
class _Texts:
    tokens: Tensor  # (rows, max_length)
    mask: Tensor  # of the same shape: which of them belong to the text


def stack(picked: Mapping[str, Column], rows: Rows, made_by: str | None = None) -> Batch:
    """One tensor for each column. Raises DataError for a sample of another shape.

    `made_by`: the key that names what has made the samples; None: lists are images as the reader
    has them.
    """
    batch: Batch = {}
    for name, column in picked.items():
        if not isinstance(column, Tensor):
            column = _stacked(name, column, rows, made_by)
        batch[name] = column
    return batch


def mask_of(column: str) -> str:
    """The name of the column that says which tokens of a column of texts belong to the text."""
    return MASK if column == INPUTS else f"{column}_{MASK}"


def _class_name(feature: ClassLabel, value: int | None) -> object:
    """A number that stands for no class is kept, to be named in the error."""
    return feature.names[value] if value is not None and value >= 0 else value


def _bytes_of(text: str, size: int) -> NDArray[np.int32]:
    # Cut by bytes: of a letter that is cut in two, its first bytes are tokens all the same.
    return np.frombuffer(text.encode()[:size], dtype=np.uint8).astype(np.int32)


def _stacked(name: str, samples: list[Tensor], rows: Rows, made_by: str | None) -> Tensor:
    for sample, row in zip(samples, rows, strict=True):
        if sample.shape != samples[0].shape:
            if made_by:
                fix = f"{made_by} must give them one"
            else:
                fix = advise_one_form([tuple(each.shape) for each in samples])
            raise DataError(
                f"{name}: row {row} is of shape {tuple(sample.shape)}, row {rows[0]} of "
                f"{tuple(samples[0].shape)}; the samples of a batch must be of one shape. {fix}"
            )
    if len({sample.dtype for sample in samples}) > 1 and not made_by:
        # Images of 8 bits beside those of 16, or of floats.
        samples = [scaled(sample) for sample in samples]
    return torch.stack(samples)
