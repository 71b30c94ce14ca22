"""The search, on a memory and a clock that the test makes up."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from train.batch.plan import make_plan
from train.memory.search import (
    all_fitting,
    candidates,
    doublings,
    largest_fitting,
    measured_down,
    smallest_fast,
)

SHARES = st.integers(1, 5000)
GUESSES = st.one_of(st.none(), st.integers(1, 6000))


@given(SHARES)
def test_candidates_are_the_micro_batches_of_all_plans(share: int) -> None:
    plans = {
        make_plan(share, "all", steps, world_size=1, dataset_size=None).micro
        for steps in range(1, share + 1)
    }

    assert candidates(share) == sorted(plans)


@given(SHARES)
def test_doublings_leave_out_what_is_near(share: int) -> None:
    sizes = candidates(share)
    found = doublings(sizes)

    assert (found[0], found[-1]) == (1, share)
    assert found == sorted(set(found))
    assert set(found) <= set(sizes)
    assert len(found) <= math.log2(share) + 2


@given(
    SHARES,
    st.floats(0, 1000),
    st.floats(0.1, 100),
    st.floats(0, 10_000),
    st.one_of(st.none(), st.integers(1, 6000)),
)
def test_the_answer_fits_and_the_next_one_does_not(
    share: int, fixed: float, per_sample: float, memory: float, guess: int | None
) -> None:
    sizes = candidates(share)
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return fixed + per_sample * size <= memory

    found = largest_fitting(sizes, fits, guess)

    fitting = [size for size in sizes if fixed + per_sample * size <= memory]
    assert found == (fitting[-1] if fitting else None)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * math.log2(len(sizes)) + 3
    # nothing is tried that is more than twice as large as what has fitted, or its next
    if guess is None:
        for before, size in pairwise(asked):
            assert size <= max(2 * before, sizes[min(sizes.index(before) + 1, len(sizes) - 1)])


def test_a_good_guess_takes_two_probes() -> None:
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 25

    assert largest_fitting(candidates(100), fits, guess=25) == 25
    assert asked == [25, 34]


@given(SHARES, st.floats(0, 3000), st.floats(0.1, 100), st.floats(0, 10_000), st.booleans())
def test_a_whole_share_may_fit_though_half_of_it_does_not(
    share: int, gradients: float, per_sample: float, memory: float, is_traced: bool
) -> None:
    """Between micro-steps the gradients stay; of a step of one micro-batch none is there before it."""
    sizes = candidates(share)
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return per_sample * size + (gradients if size < share else 0) <= memory

    fitting = [size for size in sizes if fits(size)]
    asked.clear()

    assert all_fitting(sizes, fits, max(fitting, default=None) if is_traced else None) == fitting
    assert len(asked) == len(set(asked))


def test_a_whole_share_alone() -> None:
    assert all_fitting([1, 2, 4, 8], lambda size: size == 8) == [8]
    assert all_fitting([1, 2, 4, 8], lambda size: size in (1, 2, 8), guess=8) == [1, 2, 8]
    assert all_fitting([1, 2, 4, 8], lambda size: size <= 2, guess=2) == [1, 2]
    assert all_fitting([8], lambda size: True) == [8]
    assert doublings([1, 2, 8]) == [1, 2, 8]


def test_the_smallest_within_three_percent_of_the_best() -> None:
    assert smallest_fast({64: 1000.0, 32: 990.0, 16: 971.0, 8: 969.0, 4: 600.0}) == 16
    assert smallest_fast({4: 10.0}) == 4


def test_it_measures_no_further_down_than_it_must() -> None:
    speed = {64: 1000.0, 32: 1010.0, 16: 990.0, 8: 900.0, 4: 850.0, 2: 2000.0}

    assert list(measured_down(sorted(speed), speed.__getitem__)) == [64, 32, 16, 8, 4]
