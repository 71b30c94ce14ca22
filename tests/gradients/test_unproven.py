"""Larger micro-batches than before are reduced late, where a step that runs out of memory is done
again.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import argv
from train.config import load
from train.gradients import measured_shares, unproven
from train.plan.steps import plan_batch


class Recorded:
    """A learner on two ranks, of which it is asked what is reduced late."""

    device = torch.device("cpu")
    parameters = ()

    def __init__(self) -> None:
        self.parallel = self
        self.is_sharded = False
        self.asked: list[tuple[int, int]] = []
        self.k = 0

    def reduce_late(self, steps: int) -> None:
        self.asked.append((self.k, steps))

    def walk(self, part: Any, seen: list[int]) -> list[tuple[int, int]]:
        """(step after whose gradient, or in which, it was asked; of how many steps)."""

        def compute_gradient(learner: Any, window: Any) -> torch.Tensor:
            return torch.zeros(1)

        gradient = part.gradient(compute_gradient)
        for self.k, samples in enumerate(seen, start=1):
            gradient(
                self,
                SimpleNamespace(k=self.k, seen=samples, micro_batches=SimpleNamespace(sizes=[4])),
            )
        return self.asked


def planned(folder: Path, *words: str) -> tuple[Any, Any]:
    config = load(argv(folder, *words)).config
    batch = plan_batch(config, "accumulate", 2, 1437)
    return config, SimpleNamespace(batch=batch, loop="accumulate", micro_steps=None, shrunk=None)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["batch.micro=16"], [(3, 2), (6, 2)]),
        (["batch.micro=16", "batch.on_oom=stop"], []),
        (["batch.micro=all"], []),
    ],
)
def test_a_stage_with_larger_micro_batches(
    tmp_path: Path, words: list[str], asked: list[tuple[int, int]]
) -> None:
    # in micro-batches of 4, 12, 8 and 16
    schedule = "batch.schedule={0: 8, 80: 24, 100: 16, 200: 128}"
    config, plan = planned(tmp_path, schedule, *words)

    assert Recorded().walk(unproven.part(config, plan), [0, 8, 80, 104, 120, 208, 336]) == asked


@pytest.mark.parametrize(("on_oom", "asked"), [("shrink", [(6, 3)]), ("stop", [])])
def test_shares_that_were_measured(
    tmp_path: Path, on_oom: str, asked: list[tuple[int, int]]
) -> None:
    """After the sixth step; the seventh is still equal, the two after it prove the new sizes."""
    config, plan = planned(
        tmp_path, "batch={effective: 8, shares: measured}", f"batch.on_oom={on_oom}"
    )
    ranks: Any = SimpleNamespace(world_size=2, rank=0, sum=lambda own: [0.1, 0.3])
    report: Any = SimpleNamespace(
        progress=SimpleNamespace(place=None, step=0), say=lambda line: None
    )
    learner: Any = Recorded()
    part = measured_shares.part(config, plan, learner, ranks, report, lambda batch, place: iter([]))

    assert learner.walk(part, [8 * k for k in range(10)]) == asked
