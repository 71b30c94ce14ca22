"""Documents of any length in blocks of one length, without losing a token.

The usual way, to join and cut the documents of one `map` batch after the other, drops what is left
at the end of each batch. Here one stream runs through all documents, and the last block is filled
up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from train.batch.window import IGNORED
from train.config import resolve_tokenizer
from train.config.recipe import Data
from train.config.targets import TargetError
from train.data.reading import is_text
from train.data.rows import Rows
from train.data.shares import DataError
from train.data.tokenizers import Saved, Tokenizer, TokenizerError, Tokens, complete
from train.data.tokens import any_lossy, stream_of

COLUMNS = ("inputs", "labels", "documents", "bytes")


def make_tokenizer(data: Data) -> Tokenizer:
    """Raises DataError where data.tokenizer names none."""
    try:
        maker = resolve_tokenizer(data.tokenizer)
        made: Tokenizer = complete(maker()) if maker else Saved(data.tokenizer)
    except (TargetError, TokenizerError) as error:
        raise DataError(f"data.tokenizer: {error}. Type: data.tokenizer=bytes") from error
    return made


def pack(documents: Dataset, data: Data, needed: Sequence[str]) -> Rows:
    """The documents of a set, as data.tokens has them, in their order, as blocks of data.block_size
    tokens; the columns `needed` of

    inputs     (blocks, T) int32: each document begins with the tokenizer's document_start
    labels     (blocks, T) int32: the token that follows, -100 where that is the start of another
    document: each token
               of each document is predicted once, the last of a block from the block before it
               included
    documents  (blocks, T) int32: numbers the documents within a block, for a mask
    bytes      (blocks,) int64: of UTF-8, that the labels of a block stand for
    """
    column, tokenizer, size = (
        data.columns.get("text", "text"),
        make_tokenizer(data),
        data.block_size,
    )
    assert size is not None
    try:
        cut = list(blocks(stream_of(documents, column), size))
        if not cut:
            raise DataError(
                f"the column {column!r} of a set holds no text: nothing to cut into blocks"
            )
        if isinstance(tokenizer, Saved):
            tokenizer.lossy = any_lossy(documents)
        columns = columns_of(filled(cut, size, tokenizer.document_start), tokenizer, needed)
    except TokenizerError as error:
        raise DataError(f"data.tokenizer: {error}") from error
    tokens = torch.tensor([min(len(piece), size) for piece in cut])
    return Rows({name: torch.from_numpy(columns[name]) for name in needed}, tokens=tokens)


def blocks(documents: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """Cut the stream of all documents into pieces of `size` tokens, each with the one that follows:
    (size + 1,).

    The last piece may be shorter. One token that is left alone is no piece: nothing follows it.
    """
    left = np.empty(0, np.int32)
    for document in documents:
        left = np.concatenate((left, document))
        full = max(0, len(left) - 1) // size
        for start in range(0, full * size, size):
            yield left[start : start + size + 1]
        left = left[full * size :]
    if len(left) > 1:
        yield left


def filled(pieces: Sequence[Tokens], size: int, padding: int) -> Tokens:
    """(blocks, size + 1): short pieces are filled up with `padding`."""
    whole = np.full((len(pieces), size + 1), padding, np.int32)
    for row, piece in zip(whole, pieces, strict=True):
        row[: len(piece)] = piece
    return whole


def columns_of(pieces: Tokens, tokenizer: Tokenizer, needed: Sequence[str]) -> Mapping[str, Tokens]:
    """(blocks, T + 1) -> the columns of `pack`; `bytes` where it is needed, since not every
    tokenizer can tell.
    """
    inputs, following = pieces[:, :-1], pieces[:, 1:]
    counts = following != tokenizer.document_start
    columns = {
        "inputs": np.ascontiguousarray(inputs),
        "labels": np.where(counts, following, np.int32(IGNORED)),
        "documents": np.cumsum(inputs == tokenizer.document_start, axis=1, dtype=np.int32),
    }
    if "bytes" in needed:
        columns["bytes"] = (tokenizer.lengths(following) * counts).sum(1)
    return columns


def check_columns(known: Sequence[str], column: str, needed: Sequence[str]) -> None:
    """Raises DataError where blocks cannot be had of this data, or not be what the task needs."""
    if column not in known:
        raise DataError(
            f"data.block_size cuts a column of text, {column!r}, into blocks; the data has the "
            f"columns {', '.join(known)}. Say which one it is: "
            f"data.columns.text={known[0] if known else 'NAME'}"
        )
    other = [name for name in needed if name not in COLUMNS]
    if other:
        raise DataError(
            f"the task needs {', '.join(other)}; blocks of text (data.block_size) have the columns "
            f"{', '.join(COLUMNS)}. Type: task=causal_lm"
        )


def check_text(column: str, kind: pa.DataType) -> None:
    if not is_text(kind):
        raise DataError(
            f"data.block_size cuts a column of text into blocks, but column {column!r} holds {kind}"
        )
