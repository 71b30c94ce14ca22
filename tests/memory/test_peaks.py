"""What a run holds, to the byte; and what a GPU's counters are made into, with the counters held by the test."""

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
from train.memory.peaks import GIB, Memory, over_ranks, stored_bytes
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
    """Three trained tensors of 36 + 18 + 3 numbers; AdamW keeps two moments of each and, in float32, its step."""
    model = "model={target: tests.memory.test_peaks.Tied, args: {}}"
    arguments = argv(tmp_path, model, f"optimizer.target={optimizer}", "optimizer.lr=0.01", "batch.micro=2")

    run_ranks(world_size, run, arguments)

    trained = 57 * 8
    for row in rows(tmp_path):
        assert row[names.WEIGHTS] * GIB == trained + 5 * 8
        assert row[names.GRADIENTS] * GIB == trained
        assert row[names.OPTIMIZER_STATE] * GIB == moments * trained + steps * 4
        assert (names.SMALLEST_PEAK in row) == (world_size > 1)
    assert "memory: weights 0.000473 MiB, gradients 0.000435 MiB" in (tmp_path / "run" / "log.txt").read_text()


def run_with_a_peak(arguments: list[str]) -> None:
    """Step 2 needs 200 MB more than the others, for a moment."""

    def prepare(run: Run, trace: Trace) -> None:
        calls = count(1)

        def allocate(*_: object) -> None:
            if next(calls) == 2:
                b"1" * (200 * 2**20)

        run.learner.module.register_forward_pre_hook(allocate)

    record(arguments, prepare=prepare)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel's mark cannot be lowered here")
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


def test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks by phase, and activations: what the peak of forward and backward holds beside the rest."""
    asked = torch.device("cuda", 0)
    used: list[float] = []  # since the last reset
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(max(used, default=0)))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: used.clear())
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 4})
    module = nn.Linear(256, 256, bias=False)  # 256 KiB
    optimizer = torch.optim.Adam(module.parameters())
    update_peak: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: used.extend(update_peak[-1:]))
    memory = Memory(asked, module, optimizer, row_due=lambda k: True)
    window: Any = SimpleNamespace(k=1)

    def step(forward_backward: float, update: float) -> dict[str, float]:
        def compute_gradient(learner: Any, window: Any) -> torch.Tensor:
            module(torch.ones(1, 256)).sum().backward()
            used.append(forward_backward * GIB)
            return torch.zeros(1)

        memory.gradient(compute_gradient)(None, window)
        update_peak.append(update * GIB)
        optimizer.step()
        optimizer.zero_grad()
        return memory.take()

    first, second, third = step(3.0, 4.0), step(5.0, 2.0), step(1.0, 2.0)

    assert first[names.FORWARD_BACKWARD_PEAK] == 3
    assert first[names.PEAK_ALLOCATED] == first[names.OPTIMIZER_PEAK] == 4
    assert first[names.PEAK_RESERVED] == 10
    assert first[names.ALLOCATOR_RETRIES] == 4
    assert names.ACTIVATIONS not in first  # the optimizer had no state yet
    weights = 2**18 / GIB
    assert second[names.ACTIVATIONS] == pytest.approx(5 - 4 * weights - 4 / GIB, abs=1e-12)
    # Each peak is that of its own phase, and of its own row.
    assert (second[names.PEAK_ALLOCATED], second[names.OPTIMIZER_PEAK]) == (5, 2)
    assert (third[names.FORWARD_BACKWARD_PEAK], third[names.PEAK_ALLOCATED]) == (1, 2)
