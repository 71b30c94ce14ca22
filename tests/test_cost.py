"""What the scaffold adds to a step, counted in function calls: the same on every machine, however
loaded.

Times are measured by tests/campaigns/bench.py. This guard is for what creeps in: a lookup in each
micro-step, a second pass over the parameters.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from tests.helpers_cost import hand_written, making_run, ours

STEPS = 12


def calls_per_step(steps: Iterator[None]) -> float:
    """Median number of Python and C functions called in a step."""
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    counts = []
    for _ in range(STEPS):
        before = counted
        sys.setprofile(count)
        next(steps)
        sys.setprofile(None)
        counts.append(counted - before)
    return statistics.median(counts[2:])


@pytest.fixture(name="calls")
def counted_calls(tmp_path: Path) -> Callable[[Callable[..., Iterator[None]], int], float]:
    def calls(kind: Callable[..., Iterator[None]], accumulation_steps: int) -> float:
        torch.set_num_threads(1)
        folder = tmp_path / f"{kind.__name__}{accumulation_steps}"
        with making_run(folder, accumulation_steps, "log.every_steps=100000") as run:
            return calls_per_step(kind(run))

    return calls


def test_calls_over_a_hand_written_loop(
    calls: Callable[[Callable[..., Iterator[None]], int], float],
) -> None:
    hand = {k: calls(hand_written, k) for k in (1, 4, 8)}
    own = {k: calls(ours, k) for k in (1, 4, 8)}

    per_micro_step = (own[8] - own[4] - (hand[8] - hand[4])) / 4
    per_step = own[1] - hand[1] - per_micro_step
    print(
        f"\nfunction calls over a hand-written loop: {per_micro_step:.1f} per micro-step, "
        f"{per_step:.0f} per step"
    )
    assert 0 < per_micro_step <= 20
    # the clip of the hand-written loop makes more calls than all of ours
    assert -30 < per_step <= 10
