"""What a run holds, to the byte; and what a GPU's counters are made into, with the counters held by
the test.
"""

import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import Trace, argv, record, rows
from train import metric_names as names
from train.memory.peaks import GIB, Allocator, Memory, stored_bytes
from train.metrics.largest import over_ranks
from train.run import Run


def test_shared_storages_count_once() -> None:
    whole = torch.zeros(100)
    tied = nn.Parameter(torch.zeros(10, dtype=torch.float64))

    assert stored_bytes([whole[:10], whole[50:], tied, tied]) == 400 + 80


class Tied(nn.Module):
    """(samples, 6) -> (samples, 3). A matrix that is used twice, under two names, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(inputs)) * self.scale.mean())


def run(arguments: list[str]) -> None:
    record(arguments)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("optimizer", "moments", "steps"), [("sgd", 0, 0), ("adamw", 2, 3)])
def test_weights_gradients_and_state_to_the_byte(
    run_ranks: Any, tmp_path: Path, world_size: int, optimizer: str, moments: int, steps: int
) -> None:
    """Three trained tensors of 36 + 18 + 3 numbers; AdamW keeps two moments of each and, in
    float32, its step.
    """
    model = "model={target: tests.memory.test_peaks.Tied, args: {}}"
    arguments = argv(
        tmp_path, model, f"optimizer.target={optimizer}", "optimizer.lr=0.01", "batch.micro=2"
    )

    run_ranks(world_size, run, arguments)

    trained = 57 * 8
    for row in rows(tmp_path):
        assert row[names.WEIGHTS] * GIB == trained + 5 * 8
        assert row[names.GRADIENTS] * GIB == trained
        assert row[names.OPTIMIZER_STATE] * GIB == moments * trained + steps * 4
        assert (names.SMALLEST_PEAK in row) == (world_size > 1)
    assert (
        "memory: weights 0.000473 MiB, gradients 0.000435 MiB"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def run_with_a_peak(arguments: list[str]) -> None:
    """Step 2 needs 200 MB more than the others, for a moment."""

    def prepare(run: Run, trace: Trace) -> None:
        calls = count(1)

        def allocate(*_: object) -> None:
            if next(calls) == 2:
                b"1" * (200 * 2**20)

        run.learner.module.register_forward_pre_hook(allocate)

    record(arguments, prepare=prepare)


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the kernel's mark cannot be lowered here",
)
def test_the_peak_of_a_row_is_that_since_the_row_before(run_ranks: Any, tmp_path: Path) -> None:
    run_ranks(1, run_with_a_peak, argv(tmp_path))

    first, second, *later = [row[names.PEAK_RSS] * GIB for row in rows(tmp_path)]
    assert len(later) == 3
    assert second - max(first, *later) > 150 * 2**20


def test_largest_and_smallest_over_the_ranks() -> None:
    of_ranks = [
        {names.PEAK_RSS: 2.0, names.WEIGHTS: 1.0, "x": 1.0},
        {names.PEAK_RSS: 3.0, names.WEIGHTS: 1.0},
    ]

    assert over_ranks(of_ranks) == {
        names.PEAK_RSS: 3.0,
        names.SMALLEST_PEAK: 2.0,
        names.WEIGHTS: 1.0,
    }
    assert over_ranks(of_ranks[:1]) == of_ranks[0]


class Counters(Allocator):
    """A GPU's allocator whose memory the test takes and frees, in GiB."""

    def __init__(self) -> None:
        self.now = self.peak = 0.0

    def take(self, gib: float) -> None:
        self.now += gib
        self.peak = max(self.peak, self.now)

    def free(self, gib: float) -> None:
        self.now -= gib

    def allocated(self) -> float:
        return self.now

    def peak_allocated(self) -> float:
        return self.peak

    def peak_reserved(self) -> float:
        return 64.0

    def reset_peaks(self) -> None:
        self.peak = self.now

    def retries(self) -> int:
        return 4


# of a model in float32, with Adam, EMA and DDP or flat sums
WEIGHTS, MOMENTS, AVERAGE, BUCKETS = 2.0, 4.0, 2.0, 2.0


@pytest.mark.parametrize(
    "gradient_copies", [0.0, 2.0], ids=["views of the buckets", "a second copy"]
)
@pytest.mark.parametrize("micro_steps", [2, 4])
def test_activations_are_what_forward_and_backward_give_back(
    micro_steps: int, gradient_copies: float
) -> None:
    """Each micro-step takes 3 GiB in its forward pass, and 1 more for a moment of the backward
    pass.
    """
    gpu = Counters()
    gpu.take(WEIGHTS + MOMENTS + AVERAGE + BUCKETS)
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    optimizer.register_step_pre_hook(lambda *_: gpu.take(0.5))
    optimizer.register_step_post_hook(lambda *_: gpu.free(0.5))
    predicted = 1.1 * (10 + gradient_copies + 4) * GIB
    memory = Memory(
        module,
        optimizer,
        row_due=lambda k: k != 2,
        allocator=gpu,
        prediction=(int(predicted), 8, 4),
    )

    def compute_gradient(learner: Any, window: Any) -> torch.Tensor:
        module(torch.ones(1, 2)).sum().backward()
        for micro_step in range(micro_steps):
            gpu.take(3)
            gpu.take(1)
            gpu.free(1)
            if micro_step == 0:
                gpu.take(gradient_copies)
            gpu.free(3)
        return torch.zeros(1)

    found = []
    for k in (1, 2, 3):
        window: Any = SimpleNamespace(k=k, samples=8, micro_batches=range(4))
        memory.gradient(compute_gradient)(None, window)  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
        gpu.free(gradient_copies)
        found.append(memory.take())

    for row in (found[0], found[2]):  # the first one too
        assert row[names.ACTIVATIONS] == 4
        assert (
            row[names.FORWARD_BACKWARD_PEAK]
            == row[names.PEAK_ALLOCATED]
            == 10 + gradient_copies + 4
        )
        assert row[names.OPTIMIZER_PEAK] == 10 + gradient_copies + 0.5
        assert row[names.PEAK_RESERVED] == 64
        assert row[names.ALLOCATOR_RETRIES] == 4
    # A plan is held against the first step that was measured; in one row.
    assert found[0][names.PLAN_ERROR] == pytest.approx(0.1)
    assert names.PLAN_ERROR not in found[1].keys() | found[2].keys()
    assert memory.summary().endswith("the peak of a step was predicted to +10.00%")
    # No row is due: nothing is measured apart.
    assert not {names.ACTIVATIONS, names.OPTIMIZER_PEAK} & found[1].keys()


def test_each_peak_is_that_of_its_own_row() -> None:
    gpu = Counters()
    module = nn.Linear(2, 2)
    memory = Memory(
        module, torch.optim.SGD(module.parameters()), row_due=lambda k: True, allocator=gpu
    )

    found = []
    for k, needed in enumerate((5.0, 1.0), start=1):

        def compute_gradient(learner: Any, window: Any, needed: float = needed) -> torch.Tensor:
            gpu.take(needed)
            gpu.free(needed)
            return torch.zeros(1)

        memory.gradient(compute_gradient)(None, SimpleNamespace(k=k))  # type: ignore[arg-type]
        found.append(memory.take()[names.FORWARD_BACKWARD_PEAK])

    assert found == [5, 1]
