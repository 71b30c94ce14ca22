"""Which texts of a step form a micro-batch, and on which rank: those of similar length.

Pure: the lengths of the step's texts, the number of ranks and the limits decide, so that every rank
computes the same. Work is counted in tokens: those of a text, and more for the attention among
them.
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

# The cut with the least padding is searched for with so many micro-batches and positions to cut at
# most, which keeps it within a millisecond: in larger steps the positions lie a few texts from each
# other, and more micro-batches have little padding.
RUNS = 32
POSITIONS = 64

Run = tuple[int, int]  # (first, behind the last), of the texts in order of length
Costs = NDArray[np.float32]


def deal(lengths: Ids, ranks: int, limit: int, micro: int) -> list[list[Ids]]:
    """[rank][micro-step] -> positions of its texts; none where a rank has nothing left to do.

    A micro-batch is a run of the texts in order of length, and holds their number x the longest of
    them in tokens: at most `limit`. All ranks have equally many micro-batches, and no more than
    with `micro` texts in each (or than the limit asks for): fewer where another one saves less than
    it costs. The busiest rank has as little work as could be found: among cuts with little padding
    and the evenest one. Each rank has its largest micro-batch first; rank 0 has the micro-batch of
    the most texts, so that its size is the one to log.
    """
    # Stable: texts of one length keep their order, so every rank makes the same cut.
    order = np.argsort(lengths, kind="stable")
    most = math.ceil(math.ceil(len(order) / ranks) / micro)
    shares = _shares(lengths[order], ranks, limit, most)
    shares.sort(key=_most_texts, reverse=True)
    steps = max(map(len, shares))
    dealt = []
    for share in shares:
        micro_batches = [order[start:stop] for start, stop in share]
        nothing = [order[:0]] * (steps - len(share))
        dealt.append(micro_batches + nothing)
    return dealt


def _most_texts(share: Sequence[Run]) -> int:
    """Of its micro-batches."""
    return max((stop - start for start, stop in share), default=0)


def _shares(ascending: Ids, ranks: int, limit: int, most: int) -> list[list[Run]]:
    """By rank, in at most `most` micro-steps if the limit allows it."""
    work = ascending + ascending**2 // ATTENTION
    loads = work.tolist()
    steps = micro_steps(ascending.tolist(), ranks, limit)
    cuts: list[list[Run]] = []
    if steps * ranks <= RUNS:
        positions = _positions(work)
        costs = _costs(positions, ascending, work, limit)
        cuts = _least_padding(costs, positions, ranks, max(most, steps))
    if cuts:
        steps = math.ceil(len(cuts[0]) / ranks)
    # On several ranks the least padding may leave one of them with most of the work.
    if ranks > 1 or not cuts:
        cuts.append(_evenest(ascending, loads, steps * ranks, limit))
    # By what the busiest rank has to do: the others wait for it in the reduction.
    dealt = [_to_ranks(cut, loads, ranks) for cut in cuts]
    return min(dealt, key=lambda shares: max(_work(share, loads) for share in shares))


def _evenest(ascending: Ids, loads: Sequence[int], runs: int, limit: int) -> list[Run]:
    """The cut into at most `runs` micro-batches whose largest has the least work."""
    max_texts = (limit // ascending).tolist()
    # In steps of a 64th of the longest text's work: cuts that differ by less are not told apart.
    largest = _smallest(loads, runs, max_texts, max(1, loads[-1] // 64))
    return [(start, stop) for stop, start in pairwise(_ends(loads, largest, max_texts))]


def _positions(work: Ids) -> Ids:
    """Where a run may begin or end: between any two texts, or after about as much work each."""
    if len(work) <= POSITIONS:
        return np.arange(len(work) + 1)
    done = work.cumsum()
    inner = done.searchsorted(np.linspace(0, done[-1], POSITIONS + 1)[1:-1])
    return np.unique(np.concatenate([[0], inner, [len(work)]]))


def _costs(positions: Ids, ascending: Ids, work: Ids, limit: int) -> Costs:
    """[i, j]: the work of the texts between positions i and j + 1; infinite where too large."""
    last = positions[1:] - 1
    sizes = last + 1 - positions[:-1, None]
    # In float32: half the time of float64, and exact enough for a choice.
    costs = (sizes * work[last]).astype(np.float32)
    costs[(sizes <= 0) | (sizes > limit // ascending[last])] = math.inf
    return costs


def _least_padding(costs: Costs, positions: Ids, ranks: int, most: int) -> list[list[Run]]:
    """The cut of the least work, that of the micro-steps included; [] where there is none.

    By dynamic programming over the number of micro-batches: the least work of all texts up to each
    position. The more there are, the less another one saves.
    """
    counts = range(1, min(most * ranks, RUNS) + 1)
    least = np.full((len(counts) + 1, len(positions)), math.inf, np.float32)
    least[0, 0] = 0
    sums = np.empty_like(costs)
    least_work = math.inf
    best = 0  # number of micro-batches
    for count in counts:
        np.add(costs, least[count - 1, :-1, None], out=sums).min(0, out=least[count, 1:])
        work = float(least[count, -1]) + MICRO_STEP * ranks * math.ceil(count / ranks)
        if work < least_work:
            least_work = work
            best = count
        # Two rounds over the ranks without a gain: it does not pay any more.
        if best and count >= best + 2 * ranks:
            break
    if not best:
        return []
    # From the last position back to the first: where each micro-batch begins.
    ends = [len(positions) - 1]
    for before in least[:best][::-1]:
        ends.append(int((costs[:, ends[-1] - 1] + before[:-1]).argmin()))
    return [[(int(positions[start]), int(positions[stop])) for stop, start in pairwise(ends)]]


def _to_ranks(runs: list[Run], loads: Sequence[int], ranks: int) -> list[list[Run]]:
    """The largest first, each to the rank with the least work that may take more."""
    steps = math.ceil(len(runs) / ranks)
    shares: list[list[Run]] = [[] for _ in range(ranks)]
    # Of ranks with equal work the one with the lower number comes first, on every rank alike.
    free = [(0, rank) for rank in range(ranks)]  # (work so far, rank): a heap
    for work, run in sorted(((_work([run], loads), run) for run in runs), reverse=True):
        so_far, rank = heapq.heappop(free)
        shares[rank].append(run)
        if len(shares[rank]) < steps:
            heapq.heappush(free, (so_far + work, rank))
    return shares


def _work(runs: Sequence[Run], loads: Sequence[int]) -> int:
    return sum((stop - start) * loads[stop - 1] for start, stop in runs)


def micro_steps(ascending: Sequence[int], ranks: int, limit: int) -> int:
    """How many micro-batches under the limit each rank needs, for texts of these lengths."""
    return math.ceil((len(_ends(ascending, limit)) - 1) / ranks)


def smallest_limit(ascending: Sequence[int], runs: int) -> int:
    """The fewest tokens at once with which so many micro-batches hold all texts."""
    return _smallest(ascending, runs)


def _smallest(loads: Sequence[int], runs: int, max_texts: Sequence[int] = (), by: int = 1) -> int:
    """The least work, in steps of `by`, of the largest of so many runs."""

    def is_enough(limit: int) -> bool:
        return len(_ends(loads, limit, max_texts)) - 1 <= runs

    lower = max(loads[-1], math.ceil(sum(loads) / runs))
    # Doubled until it is enough, then bisected: the larger the limit, the fewer runs there are.
    upper = lower
    while not is_enough(upper):
        upper *= 2
    limits = range(lower, upper + by, by)
    return limits[bisect_left(limits, True, key=is_enough)]


def _ends(loads: Sequence[int], limit: int, max_texts: Sequence[int] = ()) -> list[int]:
    """Where the runs end, the last one first, and 0.

    As few as possible: each takes all that its limit allows. `max_texts`: in a run that ends with
    each text.
    """
    assert limit >= loads[-1], "a text that fits no micro-batch"
    end = len(loads)
    ends = [end]
    while end > 0:
        size = limit // loads[end - 1]
        if max_texts and max_texts[end - 1] < size:
            size = max_texts[end - 1]
        end -= size
        ends.append(end)
    ends[-1] = 0
    return ends
