"""The order of the data: a keyed permutation that needs no memory, so that any rank can ask for any position.

A later change would alter every curve ever trained: tests pin its values.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from train.permutation import key_of, permute

Ids = NDArray[np.int64]

BLOCK = 1 << 16  # positions computed at a time: numpy's cost per call disappears, the memory stays at 0.5 MB


def sample_ids(size: int, seed: int, epoch: int, start: int, stop: int) -> Ids:
    """The samples at positions [start, stop) of the epoch's order, a permutation of range(size).

    Pure: the same arguments give the same ids on every machine and for every number of ranks.
    """
    first = start // BLOCK
    last = max(start, stop - 1) // BLOCK
    joined = _block(size, seed, epoch, first)
    if last > first:
        further = [_block(size, seed, epoch, b) for b in range(first + 1, last + 1)]
        joined = np.concatenate([joined, *further])
    return joined[start - first * BLOCK : stop - first * BLOCK]


@lru_cache(maxsize=4)
def _block(size: int, seed: int, epoch: int, block: int) -> Ids:
    positions = np.arange(block * BLOCK, min((block + 1) * BLOCK, size), dtype=np.uint64)
    ids = permute(positions, size, key_of(seed, epoch)).astype(np.int64)
    ids.setflags(write=False)
    return ids
