"""A stream in blocks of samples, each as large as a step."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from train.batch import BatchPlan
from train.data.shares import DataError


class Block(NamedTuple):
    """Samples that follow each other in an epoch."""

    start: int  # position of the first one in the epoch
    samples: pa.Table
    is_last: bool  # of the epoch


def one_ahead(tables: Iterable[pa.Table], start: int) -> Iterator[Block]:
    """One table is read ahead, to know which is the last.

    `start`: position of the first sample.
    """
    ahead = None
    for table in tables:
        if ahead is not None:
            yield Block(start, ahead, is_last=False)
            start += ahead.num_rows
        ahead = table
    if ahead is None:
        raise DataError(
            "the stream has no samples, or fewer than data.drop_tail needs for one step"
        )
    yield Block(start, ahead, is_last=True)


def in_stages(blocks: Iterable[Block], plan: BatchPlan, seen: int) -> Iterator[Block]:
    """The same samples, in blocks as large as the steps that a schedule makes of them."""
    pending: pa.Table | None = None  # read, and not yielded yet
    first = 0
    for block in blocks:
        # Nothing is pending where the step before has ended with its block.
        if pending is None or not pending.num_rows:
            pending = block.samples
            first = block.start
        else:
            pending = pa.concat_tables([pending, block.samples])
        while pending.num_rows:
            size = plan.at(seen).effective
            # A step continues in the next block; only the last one of an epoch may be smaller.
            if pending.num_rows < size and not block.is_last:
                break
            samples = pending.slice(0, size)
            pending = pending.slice(size)
            yield Block(first, samples, is_last=block.is_last and not pending.num_rows)
            seen += samples.num_rows
            first += samples.num_rows
