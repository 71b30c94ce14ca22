"""Texts of a step on ranks and micro-steps, by their lengths."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.batch.order import Ids
from train.data.lengths import ATTENTION, MICRO_STEP, deal, micro_steps, smallest_limit

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
# long enough that another micro-step may pay
LONG = st.lists(st.integers(1, 900), min_size=1, max_size=24)
RANKS = st.integers(1, 5)
SPARE = st.integers(0, 400)  # tokens of the limit beyond the longest text
MICRO = st.integers(1, 12)


def tokens(micro_batch: Ids, lengths: list[int]) -> int:
    """What it computes, padding included."""
    return len(micro_batch) * max((lengths[place] for place in micro_batch), default=0)


def work(micro_batch: Ids, lengths: list[int]) -> int:
    longest = max((lengths[place] for place in micro_batch), default=0)
    return len(micro_batch) * (longest + longest**2 // ATTENTION)


def works(dealt: list[list[Ids]], lengths: list[int]) -> list[int]:
    """By rank."""
    return [sum(work(micro_batch, lengths) for micro_batch in share) for share in dealt]


def cuts(count: int) -> list[list[tuple[int, int]]]:
    """All ways to cut so many sorted texts."""
    found = []
    for places in range(2 ** (count - 1)):
        ends = [0, *(place for place in range(1, count) if places >> (place - 1) & 1), count]
        found.append([*pairwise(ends)])
    return found


@given(st.one_of(LENGTHS, LONG), RANKS, SPARE, MICRO)
def test_each_text_once_within_the_limit_on_equally_many_micro_steps(
    lengths: list[int], ranks: int, spare: int, micro: int
) -> None:
    limit = max(lengths) + spare

    dealt = deal(np.array(lengths), ranks, limit, micro)

    assert sorted(place for share in dealt for micro_batch in share for place in micro_batch) == [
        *range(len(lengths))
    ]
    assert all(tokens(micro_batch, lengths) <= limit for share in dealt for micro_batch in share)
    assert len(dealt) == ranks
    (steps,) = {len(share) for share in dealt}
    needed = micro_steps(sorted(lengths), ranks, limit)
    assert needed <= steps <= max(needed, math.ceil(math.ceil(len(lengths) / ranks) / micro))
    for share in dealt:
        sizes = [len(micro_batch) for micro_batch in share]
        assert 0 not in sizes[: len(sizes) - sizes.count(0)], "what is left over stands last"
    assert any(share[-1].size for share in dealt), "a micro-step for nothing"
    again = deal(np.array(lengths), ranks, limit, micro)
    assert [[m.tolist() for m in share] for share in again] == [
        [m.tolist() for m in share] for share in dealt
    ]


@given(st.one_of(LENGTHS, LONG), RANKS, SPARE, MICRO)
def test_ranks_are_balanced_and_the_first_tells_the_most_texts(
    lengths: list[int], ranks: int, spare: int, micro: int
) -> None:
    dealt = deal(np.array(lengths), ranks, max(lengths) + spare, micro)

    of_ranks = works(dealt, lengths)
    largest = max(work(micro_batch, lengths) for share in dealt for micro_batch in share)
    assert max(of_ranks) - min(of_ranks) <= largest
    most = [max(map(len, share)) for share in dealt]
    assert most[0] == max(most)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=9), SPARE, MICRO)
def test_on_one_rank_no_cut_takes_less(lengths: list[int], spare: int, micro: int) -> None:
    """Against every way to cut the sorted texts."""
    limit = max(lengths) + spare
    ascending = sorted(lengths)
    most = max(micro_steps(ascending, 1, limit), math.ceil(len(lengths) / micro))
    costs = []
    for cut in cuts(len(lengths)):
        if len(cut) <= most and all(
            (stop - start) * ascending[stop - 1] <= limit for start, stop in cut
        ):
            costs.append(
                sum(MICRO_STEP + work(np.arange(start, stop), ascending) for start, stop in cut)
            )

    (share,) = deal(np.array(lengths), 1, limit, micro)

    found = MICRO_STEP * len(share) + sum(work(micro_batch, lengths) for micro_batch in share)
    assert found == min(costs)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=9), RANKS)
def test_in_one_micro_step_the_busiest_rank_has_as_little_as_can_be(
    lengths: list[int], ranks: int
) -> None:
    """Against every way to cut the sorted texts; a 64th of the longest is not told apart."""
    ascending = sorted(lengths)
    busiest = [
        max(work(np.arange(start, stop), ascending) for start, stop in cut)
        for cut in cuts(len(lengths))
        if len(cut) <= ranks
    ]

    dealt = deal(np.array(lengths), ranks, 10**6, len(lengths))

    assert {len(share) for share in dealt} == {1}
    assert max(works(dealt, lengths)) <= min(busiest) + work(np.array([0]), ascending[::-1]) / 64


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("effective", "useful"), [(32, 0.82), (128, 0.93)])
def test_little_padding_with_room_for_eight_of_the_longest(
    ranks: int, effective: int, useful: float
) -> None:
    """With the fewest micro-steps that have room it was 0.65 of 32 texts and 0.81 of 128."""
    shares = []
    for seed in range(10):
        drawn = np.random.default_rng(seed).lognormal(4.5, 0.5, effective)
        lengths = np.clip(drawn.astype(int), 1, 512).tolist()
        dealt = deal(np.array(lengths), ranks, 8 * 512, 8)
        shares.append(
            sum(lengths)
            / sum(tokens(micro_batch, lengths) for share in dealt for micro_batch in share)
        )
        assert max(works(dealt, lengths)) <= 1.1 * sum(works(dealt, lengths)) / ranks

    assert np.mean(shares) >= useful


def test_another_micro_step_must_save_more_than_it_costs() -> None:
    saving = [10 + MICRO_STEP // 8 + more for more in (0, 1)]

    dealt = [deal(np.array([10] * 8 + [longer] * 8), 1, 1000, 8) for longer in saving]

    assert [len(share) for (share,) in dealt] == [1, 2]


def test_attention_counts_where_ranks_are_balanced() -> None:
    """One text of 9,216 tokens is as much work as three times as many of few."""
    dealt = deal(np.array([2 * ATTENTION] + [72] * 384), 2, 4 * ATTENTION * 2, 4)

    of_rank = [sum(map(len, share)) for share in dealt]
    assert sorted(of_rank) == [1, 384]


@given(LENGTHS, st.integers(1, 12))
def test_no_smaller_limit_would_do(lengths: list[int], runs: int) -> None:
    """Against every way to cut the sorted texts, by dynamic programming."""
    ascending = sorted(lengths)
    # by how many of the shortest texts: the largest run of the best cut
    best = [0] + [math.inf] * len(ascending)
    for _ in range(min(runs, len(ascending))):
        best = [0] + [
            min(max(best[start], (stop - start) * ascending[stop - 1]) for start in range(stop))
            for stop in range(1, len(ascending) + 1)
        ]

    assert smallest_limit(ascending, runs) == best[-1]


@given(LENGTHS, SPARE)
def test_no_fewer_micro_steps_would_do(lengths: list[int], spare: int) -> None:
    ascending, limit = sorted(lengths), max(lengths) + spare

    count = micro_steps(ascending, 1, limit)

    assert smallest_limit(ascending, count) <= limit
    assert count == 1 or smallest_limit(ascending, count - 1) > limit


@pytest.mark.parametrize(("count", "limit"), [(200, 900), (1024, 8000), (1024, 900), (1024, 40000)])
def test_steps_of_many_texts(count: int, limit: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 900, count).tolist()

    dealt = deal(np.array(lengths), 2, limit, limit // 900)

    assert sorted(np.concatenate([m for share in dealt for m in share]).tolist()) == [*range(count)]
    assert max(tokens(m, lengths) for share in dealt for m in share) <= limit
    assert max(works(dealt, lengths)) <= 1.02 * sum(works(dealt, lengths)) / 2
    assert sum(lengths) >= 0.9 * sum(tokens(m, lengths) for share in dealt for m in share)


def test_texts_of_one_length_are_cut_evenly() -> None:
    dealt = deal(np.full(32, 10), 2, 100, 10)

    assert [[len(micro_batch) for micro_batch in share] for share in dealt] == [[8, 8], [8, 8]]


def test_fewer_texts_than_ranks() -> None:
    dealt = deal(np.array([3, 9]), 3, 100, 10)

    assert [[micro_batch.tolist() for micro_batch in share] for share in dealt] == [
        [[1]],
        [[0]],
        [[]],
    ]
