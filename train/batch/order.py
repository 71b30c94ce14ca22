"""The order of the data: a keyed permutation without memory.

A later change of it would alter every curve ever trained.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.permutation import key_of, permute

Ids = NDArray[np.int64]

# Positions computed together: one call of NumPy costs as much as computing a hundred of them.
AT_ONCE = 1 << 14


def sample_ids(size: int, seed: int, epoch: int, start: int, stop: int, stride: int = 0) -> Ids:
    """The samples at positions [start, stop) of the epoch's order, a permutation of range(size).

    The same arguments give the same ids on every machine and for every number of ranks. A caller
    that will ask for the positions `stride` further on, again and again, states it: those of many
    steps are then computed in one call, and nothing between them.
    """
    count = stop - start
    stride = stride or size
    if count > AT_ONCE:
        firsts = range(start, stop, AT_ONCE)
        return np.concatenate(
            [sample_ids(size, seed, epoch, i, min(i + AT_ONCE, stop)) for i in firsts]
        )
    group, row = divmod(start // stride, AT_ONCE // max(1, count))
    return _pieces(size, seed, epoch, start % stride, count, stride, group)[row]


@lru_cache(maxsize=4)
def _pieces(
    size: int, seed: int, epoch: int, first: int, count: int, stride: int, group: int
) -> Ids:
    """The ids of consecutive steps: (steps, count), as far as the epoch has them."""
    rows = AT_ONCE // max(1, count)
    starts = first + stride * np.arange(group * rows, (group + 1) * rows)
    positions = starts[starts <= size - count, None] + np.arange(count)
    ids = permute(positions.ravel().astype(np.uint64), size, key_of(seed, epoch)).astype(np.int64)
    ids.setflags(write=False)
    return ids.reshape(positions.shape)
