"""Which texts of a step go through the model together, and on which rank: those of similar length, for little padding.

Pure: the lengths of the step's texts, the number of ranks and the limit decide, so that every rank finds the same.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from train.batch.order import Ids


def deal(lengths: Ids, ranks: int, limit: int) -> list[list[Ids]]:
    """[rank][micro-step] -> places of the texts that it takes at once; none where a rank has nothing left to do.

    A micro-batch is a run of the texts in order of length, and holds their number x the longest of them in tokens: at
    most `limit`. All ranks have equally many micro-batches, as few as the limit allows; given that, the largest one is
    as small as can be. The ranks have about equally many tokens, each its largest micro-batch first; rank 0 has the
    micro-batch of the most texts, so that its size is the one to tell.
    """
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order].tolist()
    steps = micro_steps(ascending, ranks, limit)
    ends = _ends(ascending, smallest_limit(ascending, steps * ranks))
    runs = [(order[start:stop], (stop - start) * ascending[stop - 1]) for stop, start in pairwise(ends)]
    shares: list[list[Ids]] = [[] for _ in range(ranks)]
    room = [(0, rank) for rank in range(ranks)]  # (tokens so far, rank) of those that may take more: a heap
    for places, tokens in sorted(runs, key=lambda run: -run[1]):
        so_far, rank = heapq.heappop(room)
        shares[rank].append(places)
        if len(shares[rank]) < steps:
            heapq.heappush(room, (so_far + tokens, rank))
    shares.sort(key=lambda share: -max(map(len, share), default=0))
    return [share + [order[:0]] * (steps - len(share)) for share in shares]


def micro_steps(ascending: Sequence[int], ranks: int, limit: int) -> int:
    """How many micro-batches under the limit each rank needs, for texts of these lengths."""
    return math.ceil((len(_ends(ascending, limit)) - 1) / ranks)


def smallest_limit(ascending: Sequence[int], runs: int) -> int:
    """The fewest tokens at once with which so many micro-batches hold all texts."""
    least = max(ascending[-1], math.ceil(sum(ascending) / runs))
    limits = range(least, max(least, len(ascending) * ascending[-1]) + 1)
    return limits[bisect_left(limits, True, key=lambda limit: len(_ends(ascending, limit)) - 1 <= runs)]


def _ends(ascending: Sequence[int], limit: int) -> list[int]:
    """Where the runs end, the last one first, and 0. As few as can be: each takes all that the limit allows."""
    assert limit >= ascending[-1], "a text that fits no micro-batch"
    ends = [len(ascending)]
    while ends[-1]:
        ends.append(max(0, ends[-1] - limit // ascending[ends[-1] - 1]))
    return ends
