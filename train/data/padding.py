"""What fills texts up to data.max_length, and batches without most of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from train.batch.order import Ids
from train.batch.window import IGNORED, Batch
from train.data.arrow_table import is_text
from train.data.protocols import EvaluationSet
from train.data.reading import LABELS, Reader, mask_of
from train.data.shares import DataError

WITHOUT_LIMIT = "Set: batch.micro_tokens=null batch.micro=8 (or the like)"


@dataclass(frozen=True)
class Padding:
    """What fills texts up to data.max_length."""

    fills: Mapping[str, int]  # by column: a text's token, or IGNORED for a label of each token

    def lengths(self, batch: Batch) -> Tensor:
        """(samples,): positions up to the last one without padding in any column; at least 1."""
        # At least 1: of an empty text too, a model needs a position.
        ends = [_ends(batch[name], fill) for name, fill in self.fills.items()]
        return torch.stack(ends).amax(0).clamp(min=1)

    def cut(self, batch: Batch) -> Batch:
        """The batch without what is padding in all of its samples."""
        longest = int(self.lengths(batch).max())
        shorter: Batch = {}
        for name, column in batch.items():
            is_padded = name in self.fills
            # A copy: a view would keep all of the padding in memory.
            shorter[name] = column[:, :longest].contiguous() if is_padded else column
        return shorter


@dataclass(frozen=True)
class CutEvaluation:
    """An evaluation set, each batch cut to its longest text."""

    samples: EvaluationSet
    padding: Padding

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        return map(self.padding.cut, self.samples.batches(ids, size))


def find_padding(first: Batch, reader: Reader, types: pa.Schema) -> Padding:
    """Which columns hold padding, and which value it is.

    `first`: a sample; `types`: of the columns in the data. Raises DataError where no column is
    text, or where it is not known what fills one up.
    """
    texts = _text_columns(reader, types)
    if not texts:
        raise DataError(
            "batch.micro_tokens balances texts by their tokens, and none of the columns of the "
            f"task holds text: {', '.join(reader.columns)}. {WITHOUT_LIMIT}"
        )
    if reader.tokenizer is not None and reader.tokenizer.pads_left:
        raise DataError(
            "batch.micro_tokens cuts off what fills texts up behind their end, and "
            f"{reader.tokenizer.folder} fills them up in front: its padding_side is left. "
            f"{WITHOUT_LIMIT}"
        )
    fills = dict.fromkeys(texts, reader.padding)
    # Masks show how long a text is, also where it holds the padding's token itself; a transform may
    # drop them.
    fills |= {mask_of(name): 0 for name in texts if mask_of(name) in first}
    for name in first.keys() - fills.keys():
        column = first[name]
        if column.dim() < 2 or column.shape[1] != reader.max_length:
            continue
        if name != LABELS or column.is_floating_point():
            raise DataError(
                f"batch.micro_tokens cuts texts to their length, and {name!r} holds "
                f"{reader.max_length} numbers for each, as many as data.max_length: if they belong "
                f"to its tokens, what fills them up is unknown. {WITHOUT_LIMIT}, or another "
                "data.max_length"
            )
        fills[name] = IGNORED  # a label of each token
    return Padding(fills)


def _text_columns(reader: Reader, types: pa.Schema) -> list[str]:
    """Names of the task."""
    texts = []
    for name, column in reader.columns.items():
        if not isinstance(column, str) or name in reader.classes:
            continue
        if column in reader.texts or is_text(types.field(column).type):
            texts.append(name)
    return texts


def _ends(column: Tensor, fill: int) -> Tensor:
    """(samples,): the last position without padding, counted from 1; 0: there is none."""
    holds = column != fill
    # Several numbers for each token: (samples, T).
    if column.dim() > 2:
        holds = holds.flatten(2).any(2)
    return torch.where(holds, torch.arange(1, holds.shape[1] + 1), 0).amax(1)
