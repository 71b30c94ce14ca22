"""Texts of a step on ranks and micro-steps, by their lengths."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.batch.order import Ids
from train.data.lengths import deal, micro_steps, smallest_limit

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
RANKS = st.integers(1, 5)
SPARE = st.integers(0, 400)  # tokens of the limit beyond the longest text


def tokens(micro_batch: Ids, lengths: list[int]) -> int:
    """What it computes, padding included."""
    return len(micro_batch) * max((lengths[place] for place in micro_batch), default=0)


@given(LENGTHS, RANKS, SPARE)
def test_each_text_once_within_the_limit_on_equally_many_micro_steps(
    lengths: list[int], ranks: int, spare: int
) -> None:
    limit = max(lengths) + spare

    dealt = deal(np.array(lengths), ranks, limit)

    assert sorted(place for share in dealt for micro_batch in share for place in micro_batch) == [*range(len(lengths))]
    assert all(tokens(micro_batch, lengths) <= limit for share in dealt for micro_batch in share)
    assert len(dealt) == ranks
    assert {len(share) for share in dealt} == {micro_steps(sorted(lengths), ranks, limit)}
    for share in dealt:
        sizes = [len(micro_batch) for micro_batch in share]
        assert 0 not in sizes[: len(sizes) - sizes.count(0)], "what is left over stands last"
    again = deal(np.array(lengths), ranks, limit)
    assert [[m.tolist() for m in share] for share in again] == [[m.tolist() for m in share] for share in dealt]


@given(LENGTHS, RANKS, SPARE)
def test_ranks_are_balanced_and_the_first_tells_the_most_texts(lengths: list[int], ranks: int, spare: int) -> None:
    dealt = deal(np.array(lengths), ranks, max(lengths) + spare)

    of_ranks = [sum(tokens(micro_batch, lengths) for micro_batch in share) for share in dealt]
    largest = max(tokens(micro_batch, lengths) for share in dealt for micro_batch in share)
    assert max(of_ranks) - min(of_ranks) <= largest
    most = [max(map(len, share)) for share in dealt]
    assert most[0] == max(most)


@given(LENGTHS, st.integers(1, 12))
def test_no_smaller_limit_would_do(lengths: list[int], runs: int) -> None:
    """Against every way to cut the sorted texts, by dynamic programming."""
    ascending = sorted(lengths)
    best = [0] + [math.inf] * len(ascending)  # by how many of the shortest texts: the largest run of the best cut
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


def test_texts_of_one_length_are_cut_evenly() -> None:
    dealt = deal(np.full(32, 10), 2, 100)

    assert [[len(micro_batch) for micro_batch in share] for share in dealt] == [[8, 8], [8, 8]]


def test_fewer_texts_than_ranks() -> None:
    dealt = deal(np.array([3, 9]), 3, 100)

    assert [[micro_batch.tolist() for micro_batch in share] for share in dealt] == [[[1]], [[0]], [[]]]
