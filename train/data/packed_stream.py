"""Blocks of tokens out of a stream of documents, tokenised by whoever reads the stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import torch
from datasets import IterableDataset

from train.batch.window import Batch
from train.data.checks import check_values
from train.data.packing import blocks, check_is_text, columns_of, filled
from train.data.rows import finished
from train.data.shares import DataError
from train.data.stream import Numbered, Stream
from train.data.stream_blocks import Block, one_ahead
from train.data.tokenizers import Tokenizer, TokenizerError, Tokens
from train.data.tokens import document_tokens

AT_ONCE = 100  # documents


@dataclass(frozen=True, kw_only=True)
class PackedStream(Stream):
    """The blocks that train.data.packing cuts; the shuffle buffer holds documents.

    Where a block begins depends on all documents before it: to begin at a position, they are read
    and tokenised again.
    """

    tokenizer: Tokenizer
    block_size: int
    needed: Sequence[str]  # columns, as train.data.packing has them

    def _blocks(
        self,
        ordered: IterableDataset,
        size: int,
        start: int = 0,
        end: int | None = None,
        drop_tail: bool = False,
    ) -> Iterator[Block]:
        # No skip of documents: a block begins anywhere in one.
        pieces = islice(blocks(self._documents(ordered), self.block_size), start, end)
        return one_ahead(self._tables(pieces, size, drop_tail), start)

    def _tables(self, pieces: Iterator[Tokens], size: int, drop_tail: bool) -> Iterator[pa.Table]:
        """`size` blocks at a time."""
        while members := list(islice(pieces, size)):
            if len(members) < size and drop_tail:
                return
            tokens = filled(members, self.block_size, self.tokenizer.document_start)
            # A table of Arrow as every stream gives it, so that blocks are cut, numbered and sent
            # to the other ranks as samples are.
            flat = pa.array(tokens.ravel())
            columns = {
                "block": pa.FixedSizeListArray.from_arrays(flat, self.block_size + 1),
                # What fills up the last block is counted nowhere.
                "tokens": pa.array([min(len(piece), self.block_size) for piece in members]),
            }
            yield pa.table(columns)

    def _tokens(self, rows: pa.Table) -> int:
        return int(sum(rows.column("tokens").to_pylist()))

    def _documents(self, ordered: IterableDataset) -> Iterator[Tokens]:
        (column,) = self.reader.names
        row = 0
        for table in ordered.with_format("arrow").iter(batch_size=AT_ONCE):
            check_values(table, self.reader, "train", row)
            check_is_text(column, table.schema.field(column).type)
            try:
                for text in table.column(column).to_pylist():
                    yield document_tokens(text, self.tokenizer)
            except TokenizerError as error:
                raise DataError(f"data.tokenizer: {error}") from error
            row += table.num_rows

    def _has(self, names: Sequence[str]) -> bool:
        return set(names) <= set(self.needed)

    def _only(self, names: Sequence[str]) -> "PackedStream":
        return replace(self, needed=names)

    def _images(self, rows: pa.Table) -> frozenset[str]:
        return frozenset()

    def _batch(self, samples: Numbered) -> Batch:
        rows = samples.rows
        if not rows.num_rows:  # nothing left for this rank: it takes the filler
            return {}
        flat = rows.column("block").combine_chunks().flatten().to_numpy()
        # A copy, since Arrow's own memory is not to be written to.
        pieces = flat.copy().reshape(rows.num_rows, self.block_size + 1)
        try:
            columns = columns_of(pieces, self.tokenizer, self.needed)
        except TokenizerError as error:
            raise DataError(f"data.tokenizer: {error}") from error
        batch = {name: torch.from_numpy(columns[name]) for name in self.needed}
        return finished(batch, frozenset(), samples.ids)
