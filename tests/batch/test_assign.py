"""The samples of a step depend on data, seed and effective batch alone; ranks and micro-batches
only divide them.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.batch import Assignment, BatchPlan, assign, key_of, make_plan, order
from train.permutation import permute

PLANS = {
    "effective": st.integers(1, 60),
    "micro": st.integers(1, 60),
    "ranks": st.integers(1, 7),
    "size": st.integers(1, 150),
    "seed": st.integers(0, 2**63 - 1),
}


def of_rank(plan: BatchPlan, seed: int, k: int, rank: int) -> Assignment:
    assert plan.steps_per_epoch is not None
    epoch, index = divmod(k - 1, plan.steps_per_epoch)
    return assign(plan, seed, epoch, index * plan.effective, rank)


def step(plan: BatchPlan, seed: int, k: int) -> list[Assignment]:
    return [of_rank(plan, seed, k, rank) for rank in range(plan.world_size)]


def ids(assignments: list[Assignment]) -> list[int]:
    return [i for assignment in assignments for i in assignment.ids.tolist()]


@given(**PLANS)
def test_each_epoch_takes_every_sample_once(
    effective: int, micro: int, ranks: int, size: int, seed: int
) -> None:
    plan = make_plan(effective, micro, None, world_size=ranks, dataset_size=size)

    for epoch in (0, 1):
        first = epoch * plan.steps_per_epoch + 1
        taken = [step(plan, seed, k) for k in range(first, first + plan.steps_per_epoch)]
        assert sorted(i for assignments in taken for i in ids(assignments)) == list(range(size))
        assert [assignments[0].last_of_epoch for assignments in taken] == [False] * (
            len(taken) - 1
        ) + [True]


@given(**PLANS, k=st.integers(1, 40))
def test_ranks_and_micro_batches_do_not_change_a_step(
    effective: int, micro: int, ranks: int, size: int, seed: int, k: int
) -> None:
    alone = make_plan(effective, "all", None, world_size=1, dataset_size=size)
    together = make_plan(effective, micro, None, world_size=ranks, dataset_size=size)

    (whole,) = step(alone, seed, k)

    assert ids(step(together, seed, k)) == whole.ids.tolist()
    assert whole.samples == len(whole.ids)


@given(**PLANS, k=st.integers(1, 40))
def test_every_rank_takes_the_same_number_of_micro_steps(
    effective: int, micro: int, ranks: int, size: int, seed: int, k: int
) -> None:
    plan = make_plan(effective, micro, None, world_size=ranks, dataset_size=size)

    assignments = step(plan, seed, k)

    assert len({len(a.sizes) for a in assignments}) == 1
    assert len({a.samples for a in assignments}) == 1
    assert sum(sum(a.sizes) for a in assignments) == assignments[0].samples == len(ids(assignments))
    sizes = [size for a in assignments for size in a.sizes]
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= max(sizes) <= micro
    for a in assignments:
        assert sum(a.sizes) == len(a.ids)
        assert a.filler_ids.tolist()[0] in ids(assignments)
        if 0 in a.sizes:
            assert a.filler_ids.tolist() == ids(assignments)[:1]


def test_a_tail_ends_its_epoch() -> None:
    plan = make_plan(16, 4, None, world_size=2, dataset_size=37)

    assert [of_rank(plan, 0, k, 0).samples for k in range(1, 7)] == [16, 16, 5, 16, 16, 5]
    assert [of_rank(plan, 0, k, 0).sizes for k in (3, 6)] == [(3,), (3,)]
    assert [of_rank(plan, 0, k, 1).sizes for k in (3, 6)] == [(2,), (2,)]


def test_a_dropped_tail_is_in_no_step() -> None:
    plan = make_plan(16, 4, None, world_size=2, dataset_size=37, drop_tail=True)

    for epoch in (0, 1):
        taken = ids(step(plan, 0, 2 * epoch + 1)) + ids(step(plan, 0, 2 * epoch + 2))
        assert len(set(taken)) == len(taken) == 32


def test_one_sample_on_two_ranks() -> None:
    plan = make_plan(1, "all", None, world_size=2, dataset_size=1)

    busy, idle = step(plan, 0, 1)

    assert (busy.ids.tolist(), busy.sizes) == ([0], (1,))
    assert (idle.ids.tolist(), idle.sizes, idle.filler_ids.tolist()) == ([], (0,), [0])


def test_seeds_give_other_steps() -> None:
    plan = make_plan(16, "all", None, world_size=1, dataset_size=64)

    assert len({tuple(of_rank(plan, seed, 1, 0).ids) for seed in range(20)}) == 20


@pytest.fixture(name="permuted")
def counted_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of the permutation was asked for."""
    counts = []

    def count(positions: np.ndarray[Any, np.dtype[np.uint64]], size: int, key: int) -> Any:
        counts.append(positions.size)
        return permute(positions, size, key)

    monkeypatch.setattr(order, "permute", count)
    order._pieces.cache_clear()
    return counts


@pytest.mark.parametrize("size", [10**4, 10**7, 10**10])
@pytest.mark.parametrize(
    ("ranks", "effective"), [(1, 64), (1, 20_000), (64, 4096), (4096, 4096 * 64), (4096, 1000)]
)
def test_a_step_costs_a_rank_its_own_share(
    permuted: list[int], ranks: int, effective: int, size: int
) -> None:
    plan, rank = make_plan(effective, "all", None, world_size=ranks, dataset_size=size), ranks // 2
    share = max(1, effective // ranks)
    starts = range(0, size, effective)[-min(2000, 2**17 // share) :]

    found = [assign(plan, 3, 1, start, rank) for start in starts]

    asked = sum(max(1, len(one.ids)) for one in found)
    assert sum(permuted) <= asked + order.AT_ONCE + share, "positions that no step asked for"
    assert len(permuted) <= asked / order.AT_ONCE + 2 * len(found) * (share > order.AT_ONCE) + 3, (
        "each takes 0.2 ms"
    )
    for start, one in zip(starts, found, strict=True):
        if one.samples == effective and (start // effective) % 97 == 0:
            first = start + rank * effective // ranks
            positions = np.arange(first, first + len(one.ids), dtype=np.uint64)
            assert one.ids.tolist() == permute(positions, size, key_of(3, 1)).tolist()
