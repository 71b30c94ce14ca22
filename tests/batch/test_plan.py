"""Any two of effective batch, micro-batch and accumulation steps; any effective batch on any number
of ranks.
"""

from itertools import accumulate, cycle, islice

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from train.batch import BatchPlan, PlanError, assign, make_plan, share
from train.batch.plan import split_evenly
from train.plan.arithmetic import arithmetic

SIZES = st.integers(1, 500)
RANKS = st.integers(1, 16)


@pytest.mark.parametrize(
    ("effective", "micro", "accumulation_steps", "world_size", "expected"),
    [
        (32, "all", None, 1, (32, 32, 1)),
        (32, 8, None, 1, (32, 8, 4)),
        (32, "all", 4, 2, (32, 4, 4)),
        (None, 4, 8, 2, (64, 4, 8)),
        (32, 4, 4, 2, (32, 4, 4)),
        (100, "all", None, 3, (100, 34, 1)),
        (100, 12, None, 3, (100, 12, 3)),
        (100, 10, None, 3, (100, 9, 4)),  # 34 in four parts is 9+9+8+8
        (1, "all", None, 2, (1, 1, 1)),
        (64, 1000, None, 1, (64, 64, 1)),
    ],
)
def test_the_third_follows_from_two(
    effective: int | None,
    micro: int | str,
    accumulation_steps: int | None,
    world_size: int,
    expected: tuple[int, int, int],
) -> None:
    plan = make_plan(effective, micro, accumulation_steps, world_size=world_size, dataset_size=1000)

    assert (plan.effective, plan.micro, plan.accumulation_steps) == expected


def test_100_samples_on_3_ranks() -> None:
    assert [share(100, rank, 3) for rank in range(3)] == [34, 33, 33]


@given(samples=st.integers(0, 2000), count=st.integers(1, 64))
def test_splits_are_even(samples: int, count: int) -> None:
    sizes = split_evenly(samples, count)

    assert sum(sizes) == samples
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(
    effective=SIZES,
    micro=SIZES | st.just("all"),
    steps=st.integers(1, 40) | st.none(),
    ranks=RANKS,
    size=SIZES,
)
@example(effective=4, micro="all", steps=3, ranks=1, size=1)  # 2+1+1, not 2+2
@example(effective=10, micro="all", steps=4, ranks=2, size=1)
def test_every_step_is_the_effective_batch_in_even_micro_batches(
    effective: int, micro: int | str, steps: int | None, ranks: int, size: int
) -> None:
    try:
        plan = make_plan(effective, micro, steps, world_size=ranks, dataset_size=size + effective)
    except PlanError:
        assume(False)

    full = [assign(plan, 0, 0, 0, rank).sizes for rank in range(ranks)]

    assert sum(map(sum, full)) == plan.effective == effective
    assert {len(sizes) for sizes in full} == {plan.accumulation_steps}
    all_sizes = [size for sizes in full for size in sizes]
    assert max(all_sizes) - min(all_sizes) <= 1
    assert max(all_sizes) == plan.micro
    assert micro == "all" or plan.micro <= micro
    assert steps is None or plan.accumulation_steps == steps


@given(micro=st.integers(1, 50), steps=st.integers(1, 50), ranks=RANKS)
def test_micro_and_steps_without_an_effective_batch(micro: int, steps: int, ranks: int) -> None:
    plan = make_plan(None, micro, steps, world_size=ranks, dataset_size=1)

    assert plan.effective == micro * steps * ranks
    assert (plan.micro, plan.accumulation_steps) == (micro, steps)


def brute_force(plan: BatchPlan, steps: int) -> list[int]:
    """Samples seen after 0, 1, ... steps, one epoch after the other."""
    full, tail = divmod(plan.dataset_size, plan.effective)
    epoch = [plan.effective] * full + [tail] * (tail > 0 and not plan.drop_tail)
    return [0, *accumulate(islice(cycle(epoch), steps))]


@given(
    effective=st.integers(1, 60),
    size=st.integers(1, 200),
    drop_tail=st.booleans(),
    samples=st.integers(0, 500),
)
def test_samples_and_steps_are_inverse(
    effective: int, size: int, drop_tail: bool, samples: int
) -> None:
    assume(not drop_tail or size >= effective)
    plan = make_plan(effective, "all", None, world_size=1, dataset_size=size, drop_tail=drop_tail)

    seen = brute_force(plan, 600)

    assert [plan.samples_after(k) for k in range(601)] == seen
    assert plan.steps_for(samples) == next(k for k, total in enumerate(seen) if total >= samples)
    assert plan.samples_per_epoch == seen[plan.steps_per_epoch]


@pytest.mark.parametrize(
    ("drop_tail", "steps_per_epoch", "samples_per_epoch"), [(False, 3, 37), (True, 2, 32)]
)
def test_drop_tail(drop_tail: bool, steps_per_epoch: int, samples_per_epoch: int) -> None:
    plan = make_plan(16, "all", None, world_size=2, dataset_size=37, drop_tail=drop_tail)

    assert (plan.steps_per_epoch, plan.samples_per_epoch, plan.tail_samples) == (
        steps_per_epoch,
        samples_per_epoch,
        5,
    )


@pytest.mark.parametrize(
    ("stated", "world_size", "line"),
    [
        ((None, "all", None), 1, "batch.effective=64"),
        ((None, 8, None), 1, "batch.effective=64"),
        ((None, "all", 8), 1, "batch.effective=64"),
        ((100, 8, 4), 1, "batch.effective=100 batch.micro=8"),
        ((64, 4, 4), 2, "batch.effective=64 batch.micro=4"),
        ((10, "all", 11), 1, "batch.accumulation_steps=10"),
        ((10, "all", 4), 3, None),
        ((10, "all", 5), 3, "batch.accumulation_steps=4"),
    ],
)
def test_a_contradiction_is_refused_with_a_line_to_paste(
    stated: tuple[int | None, int | str, int | None], world_size: int, line: str | None
) -> None:
    if line is None:
        make_plan(*stated, world_size=world_size, dataset_size=100)
        return

    with pytest.raises(PlanError) as refusal:
        make_plan(*stated, world_size=world_size, dataset_size=100)

    assert str(refusal.value).rpartition(": ")[2] == line
    assert all(
        str(number) in str(refusal.value)
        for number in stated
        if isinstance(number, int) and None not in stated
    )


def test_the_line_to_paste_works() -> None:
    with pytest.raises(PlanError, match=r"batch\.effective=100 batch\.micro=8$"):
        make_plan(100, 8, 4, world_size=1, dataset_size=100)

    assert make_plan(100, 8, None, world_size=1, dataset_size=100).accumulation_steps == 13


def test_no_step_left_to_train_is_refused() -> None:
    with pytest.raises(PlanError, match=r"10 samples.*batch\.effective=16.*data\.drop_tail=false"):
        make_plan(16, "all", None, world_size=1, dataset_size=10, drop_tail=True)


@pytest.mark.parametrize(
    ("effective", "micro", "world_size", "text"),
    [
        (32, "all", 1, "32 samples = 32 on 1 rank, in one micro-batch"),
        (32, 8, 2, "32 samples = 2 x 16 on 2 ranks, in micro-batches of 8+8"),
        (100, 12, 3, "100 samples = 34+33+33 on 3 ranks, in micro-batches of 12+11+11"),
        (100, 2, 3, "100 samples = 34+33+33 on 3 ranks, in 17 micro-batches of at most 2"),
        (1, "all", 2, "1 samples = 1+0 on 2 ranks, in one micro-batch"),
        (100, 4, 16, "100 samples = 4 x 7 + 12 x 6 on 16 ranks, in micro-batches of 4+3"),
    ],
)
def test_arithmetic(effective: int, micro: int | str, world_size: int, text: str) -> None:
    assert (
        arithmetic(make_plan(effective, micro, None, world_size=world_size, dataset_size=500))
        == text
    )
