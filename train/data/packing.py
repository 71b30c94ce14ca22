"""Documents of any length in blocks of one length, without losing a token.

The usual way, to join and cut the documents of one `map` batch after the other, drops the rest of
each batch. Here one stream runs through all documents, and the last block is filled up.
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
from train.data.arrow_table import is_text
from train.data.rows import Rows
from train.data.shares import DataError
from train.data.tokenizers import Saved, Tokenizer, TokenizerError, Tokens, complete
from train.data.tokens import any_lossy, stream_of

COLUMNS = ("inputs", "labels", "documents", "bytes")


def make_tokenizer(data: Data) -> Tokenizer:
    """Raises DataError where data.tokenizer names none."""
    try:
        tokenizer_class = resolve_tokenizer(data.tokenizer)
        if tokenizer_class is None:
            return Saved(data.tokenizer)
        return complete(tokenizer_class())
    except (TargetError, TokenizerError) as error:
        raise DataError(f"data.tokenizer: {error}. Set: data.tokenizer=bytes") from error


def pack(documents: Dataset, data: Data, needed: Sequence[str]) -> Rows:
    """Tokenised documents of a set (train.data.tokens), in their order, as blocks of T tokens.

    T is data.block_size. The columns `needed` of:

    inputs     (blocks, T) int32: each document begins with the tokenizer's document_start
    labels     (blocks, T) int32: the token that follows, IGNORED where that is the start of another
               document: each token of each document is predicted once, the first of a block from
               the block before it
    documents  (blocks, T) int32: numbers the documents within a block, for a mask
    bytes      (blocks,) int64: of UTF-8, that the labels of a block stand for
    """
    column = data.columns.get("text", "text")
    size = data.block_size
    assert size is not None
    tokenizer = make_tokenizer(data)
    try:
        pieces = list(blocks(stream_of(documents, column), size))
        if not pieces:
            raise DataError(
                f"the column {column!r} of a set holds no text: nothing to cut into blocks"
            )
        if isinstance(tokenizer, Saved):
            tokenizer.lossy = any_lossy(documents)
        columns = columns_of(filled(pieces, size, tokenizer.document_start), tokenizer, needed)
    except TokenizerError as error:
        raise DataError(f"data.tokenizer: {error}") from error
    # (blocks,): how many inputs of a block are of a text. What fills up the rest is no token of the
    # run.
    tokens = torch.tensor([min(len(piece), size) for piece in pieces])
    return Rows({name: torch.from_numpy(columns[name]) for name in needed}, tokens=tokens)


def blocks(documents: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    """The stream of all documents in pieces of `size` tokens and the one that follows: (size + 1,).

    The last piece may be shorter. A single token is no piece: nothing follows it.
    """
    rest = np.empty(0, np.int32)
    for document in documents:
        # A block may hold several documents, and a document several blocks.
        rest = np.concatenate((rest, document))
        # One token less: each block needs the one that follows its last.
        full = max(0, len(rest) - 1) // size
        for start in range(0, full * size, size):
            yield rest[start : start + size + 1]
        # Begins with the token that the block before has predicted: as an input it is the first
        # here.
        rest = rest[full * size :]
    if len(rest) > 1:
        yield rest


def filled(pieces: Sequence[Tokens], size: int, padding: int) -> Tokens:
    """(blocks, size + 1): short pieces are filled up with `padding`."""
    # Both callers fill up with the start of a document, which is never predicted: so it counts in
    # no loss.
    complete = np.full((len(pieces), size + 1), padding, np.int32)
    for row, piece in zip(complete, pieces, strict=True):
        row[: len(piece)] = piece
    return complete


def columns_of(pieces: Tokens, tokenizer: Tokenizer, needed: Sequence[str]) -> Mapping[str, Tokens]:
    """(blocks, T + 1) -> the columns of `pack`; `bytes` only where it is needed.

    Not every tokenizer knows them.
    """
    inputs = pieces[:, :-1]
    following = pieces[:, 1:]
    # Nothing in a document foretells the next one.
    counts = following != tokenizer.document_start
    columns = {
        "inputs": np.ascontiguousarray(inputs),
        "labels": np.where(counts, following, np.int32(IGNORED)),
        # 0 is the document that has begun in an earlier block.
        "documents": np.cumsum(inputs == tokenizer.document_start, axis=1, dtype=np.int32),
    }
    if "bytes" in needed:
        columns["bytes"] = (tokenizer.lengths(following) * counts).sum(1)
    return columns


def check_columns(known: Sequence[str], column: str, needed: Sequence[str]) -> None:
    """Raises DataError where the data lacks the column of text, or blocks what the task needs."""
    if column not in known:
        example = known[0] if known else "NAME"
        raise DataError(
            f"data.block_size cuts a column of text, {column!r}, into blocks; the data has the "
            f"columns {', '.join(known)}. Say which one it is: data.columns.text={example}"
        )
    other = [name for name in needed if name not in COLUMNS]
    if other:
        raise DataError(
            f"the task needs {', '.join(other)}; blocks of text (data.block_size) have the columns "
            f"{', '.join(COLUMNS)}. Set: task=causal_lm"
        )


def check_is_text(column: str, kind: pa.DataType) -> None:
    """Raises DataError for a column of another type."""
    if not is_text(kind):
        raise DataError(
            f"data.block_size cuts a column of text into blocks, but column {column!r} holds {kind}"
        )
