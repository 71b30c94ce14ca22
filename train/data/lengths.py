"""Which texts of a step go through the model together, and on which rank: those of similar length,
for little padding.

Pure: the lengths of the step's texts, the number of ranks and the limits decide, so that every rank
finds the same. Work is counted in tokens: those of a text, and more for the attention among them.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from train.batch.order import Ids

# What a micro-step costs whatever it holds, in tokens: 52 to 68 of BERTs of width 128 to 768 on one
# CPU thread; more of smaller models, and on a GPU. The model is not known here: so never more
# micro-steps than with all padding.
MICRO_STEP = 64

# Texts of this length take twice the work of their tokens: in a block of a transformer, attention
# takes 4 x width x length operations per token and all else 24 x width^2, so it is 6 x width. The
# width is not known here: BERT base's.
ATTENTION = 6 * 768

# The cut with the least padding is looked for with so many micro-batches and places to cut at most,
# which keeps it within a millisecond: in larger steps the places lie a few texts apart, and more
# micro-batches have little padding.
RUNS = 32
PLACES = 64

Run = tuple[int, int]  # (first, behind the last), of the texts in order of length
Costs = NDArray[np.float32]


def deal(lengths: Ids, ranks: int, limit: int, micro: int) -> list[list[Ids]]:
    """[rank][micro-step] -> places of the texts that it takes at once; none where a rank has
    nothing left to do.

    A micro-batch is a run of the texts in order of length, and holds their number x the longest of
    them in tokens: at most `limit`. All ranks have equally many micro-batches, and no more than
    with `micro` texts in each (or than the limit asks for): fewer where another one saves less than
    it costs. The busiest rank has as little work as could be found: among cuts with little padding
    and the evenest one. Each rank has its largest micro-batch first; rank 0 has the micro-batch of
    the most texts, so that its size is the one to tell.
    """
    order = np.argsort(lengths, kind="stable")
    shares = _shares(lengths[order], ranks, limit, math.ceil(math.ceil(len(order) / ranks) / micro))
    shares.sort(key=lambda share: -max((stop - start for start, stop in share), default=0))
    steps = max(map(len, shares))
    dealt = [[order[start:stop] for start, stop in share] for share in shares]
    return [share + [order[:0]] * (steps - len(share)) for share in dealt]


def _shares(ascending: Ids, ranks: int, limit: int, most: int) -> list[list[Run]]:
    """By rank, in at most so many micro-steps if the limit allows it."""
    work = ascending + ascending**2 // ATTENTION
    loads = work.tolist()
    steps = micro_steps(ascending.tolist(), ranks, limit)
    cuts: list[list[Run]] = []
    if steps * ranks <= RUNS:
        places = _places(work)
        cuts = _least_padding(
            _costs(places, ascending, work, limit), places, ranks, max(most, steps)
        )
    if cuts:
        steps = math.ceil(len(cuts[0]) / ranks)
    if ranks > 1 or not cuts:
        rooms = (limit // ascending).tolist()
        largest = _smallest(loads, steps * ranks, rooms, max(1, loads[-1] // 64))
        cuts.append([(start, stop) for stop, start in pairwise(_ends(loads, largest, rooms))])
    found = [_to_ranks(cut, loads, ranks) for cut in cuts]
    return min(found, key=lambda shares: max(_work(share, loads) for share in shares))


def _places(work: Ids) -> Ids:
    """Where a run may begin or end: between any two texts, or with about as much work from place to
    place.
    """
    if len(work) <= PLACES:
        return np.arange(len(work) + 1)
    done = work.cumsum()
    inner = done.searchsorted(np.linspace(0, done[-1], PLACES + 1)[1:-1])
    return np.unique(np.concatenate([[0], inner, [len(work)]]))


def _costs(places: Ids, ascending: Ids, work: Ids, limit: int) -> Costs:
    """[i, j]: the work of the texts between place i and place j + 1; infinite where that is no
    micro-batch.
    """
    last = places[1:] - 1
    sizes = last + 1 - places[:-1, None]
    # half the time of float64, and exact enough for a choice
    costs = (sizes * work[last]).astype(np.float32)
    costs[(sizes <= 0) | (sizes > limit // ascending[last])] = math.inf
    return costs


def _least_padding(costs: Costs, places: Ids, ranks: int, most: int) -> list[list[Run]]:
    """The cut of the least work, that of the micro-steps included; [] where none was found.

    By dynamic programming over the number of micro-batches: the least work of all texts up to each
    place. The more there are, the less another one saves.
    """
    counts = range(1, min(most * ranks, RUNS) + 1)
    least = np.full((len(counts) + 1, len(places)), math.inf, np.float32)
    least[0, 0] = 0
    sums = np.empty_like(costs)
    best = (math.inf, 0)
    for count in counts:
        np.add(costs, least[count - 1, :-1, None], out=sums).min(0, out=least[count, 1:])
        work = float(least[count, -1]) + MICRO_STEP * ranks * math.ceil(count / ranks)
        best = min(best, (work, count))
        if best[1] and count >= best[1] + 2 * ranks:
            break
    if not best[1]:
        return []
    ends = [len(places) - 1]
    for before in least[: best[1]][::-1]:
        ends.append(int((costs[:, ends[-1] - 1] + before[:-1]).argmin()))
    return [[(int(places[start]), int(places[stop])) for stop, start in pairwise(ends)]]


def _to_ranks(runs: list[Run], loads: Sequence[int], ranks: int) -> list[list[Run]]:
    """The largest first, each to the rank with the least work that may take more."""
    steps = math.ceil(len(runs) / ranks)
    shares: list[list[Run]] = [[] for _ in range(ranks)]
    room = [(0, rank) for rank in range(ranks)]  # (work so far, rank): a heap
    for work, run in sorted(((_work([run], loads), run) for run in runs), reverse=True):
        so_far, rank = heapq.heappop(room)
        shares[rank].append(run)
        if len(shares[rank]) < steps:
            heapq.heappush(room, (so_far + work, rank))
    return shares


def _work(runs: Sequence[Run], loads: Sequence[int]) -> int:
    return sum((stop - start) * loads[stop - 1] for start, stop in runs)


def micro_steps(ascending: Sequence[int], ranks: int, limit: int) -> int:
    """How many micro-batches under the limit each rank needs, for texts of these lengths."""
    return math.ceil((len(_ends(ascending, limit)) - 1) / ranks)


def smallest_limit(ascending: Sequence[int], runs: int) -> int:
    """The fewest tokens at once with which so many micro-batches hold all texts."""
    return _smallest(ascending, runs)


def _smallest(loads: Sequence[int], runs: int, rooms: Sequence[int] = (), by: int = 1) -> int:
    """The least work, in steps of `by`, of the largest of so many runs."""

    def enough(limit: int) -> bool:
        return len(_ends(loads, limit, rooms)) - 1 <= runs

    least = enough_for_all = max(loads[-1], math.ceil(sum(loads) / runs))
    while not enough(enough_for_all):
        enough_for_all *= 2
    limits = range(least, enough_for_all + by, by)
    return limits[bisect_left(limits, True, key=enough)]


def _ends(loads: Sequence[int], limit: int, rooms: Sequence[int] = ()) -> list[int]:
    """Where the runs end, the last one first, and 0. As few as can be: each takes all that its
    limit allows.

    `rooms`: how many texts may be in a run that ends with each.
    """
    assert limit >= loads[-1], "a text that fits no micro-batch"
    end = len(loads)
    ends = [end]
    while end > 0:
        size = limit // loads[end - 1]
        if rooms and rooms[end - 1] < size:
            size = rooms[end - 1]
        end -= size
        ends.append(end)
    ends[-1] = 0
    return ends
