"""Another cut of a step has the same samples, in no larger micro-batches, and equally many on every
rank.
"""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.batch.window import MicroBatch
from train.exactness.audit_cut import InMemory, OtherCut
from train.exactness.audit_schedule import describe_schedule
from train.exactness.faulty_rank import suspects


def in_memory(sizes: Sequence[int]) -> InMemory:
    """Samples 0, 1, 2 ... in micro-batches of these sizes; 0: a filler, which is sample 0."""
    micro_batches, first = [], 0
    for size in sizes:
        ids = torch.arange(first, first + size) if size else torch.zeros(1, dtype=torch.int64)
        micro_batches.append(MicroBatch({"sample_id": ids}, size))
        first += size
    return InMemory(micro_batches)


def other_cut(sizes: Sequence[int], parts: int, seed: int) -> OtherCut:
    source = in_memory(sizes).backwards()
    return OtherCut(source=source, count=len(sizes), parts=parts, seed=seed, trim=None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_it_is_the_same_step(sizes: list[int], seed: int) -> None:
    parts = 2 if max(sizes) > 1 else 1
    cut = other_cut(sizes, parts, seed)

    micro_batches = list(cut)

    assert len(micro_batches) == len(cut) == len(sizes) * parts
    counted = [i for m in micro_batches if m.samples for i in m.batch["sample_id"].tolist()]
    assert sorted(counted) == list(range(sum(sizes)))
    assert max(m.samples for m in micro_batches) <= max(sizes)
    assert all(len(m.batch["sample_id"]) == max(1, m.samples) for m in micro_batches)
    assert [m.samples for m in micro_batches] == list(cut.sizes)


def test_sizes_and_order_are_others() -> None:
    micro_batches = list(other_cut([8, 8], parts=2, seed=7))

    assert [m.samples for m in micro_batches] == [5, 3, 5, 3]
    assert [i for m in micro_batches for i in m.batch["sample_id"].tolist()] != list(range(16))
    # the last one first
    assert {i for m in micro_batches[:2] for i in m.batch["sample_id"].tolist()} == set(
        range(8, 16)
    )


def test_single_samples_come_in_another_order() -> None:
    micro_batches = list(other_cut([1, 1, 1], parts=1, seed=0))

    assert [int(m.batch["sample_id"]) for m in micro_batches] == [2, 1, 0]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], []),
        ([(0, 1), (1, 0)], [0, 1]),  # two ranks
        ([(0, 1), (1, 2)], [1]),  # of three, the one that disagrees with both
        ([(3, 0), (2, 3)], [3]),
        ([(1, 2)], [1, 2]),
    ],
)
def test_the_rank_that_disagrees_with_both_others_is_suspect(
    pairs: list[tuple[int, int]], expected: list[int]
) -> None:
    assert suspects(pairs) == expected


@pytest.mark.parametrize(
    ("every_steps", "total_steps", "expected"),
    [
        (
            1000,
            4000,
            "at steps 1, 10, 100 and every 1,000 steps: a second gradient, cut another way, in 7 of "
            "4,000 steps",
        ),
        (1000, 50, "at steps 1, 10: a second gradient, cut another way, in 2 of 50 steps"),
        (
            5,
            20,
            "at steps 1 and every 5 steps: a second gradient, cut another way, in 5 of 20 steps",
        ),
    ],
)
def test_the_plan_says_when_and_how_often(
    every_steps: int, total_steps: int, expected: str
) -> None:
    assert expected in describe_schedule(every_steps, total_steps)
