"""What a run holds, to the byte; and what a GPU's counters are made into, with the counters held by the test."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import argv, record, rows
from train import names
from train.memory import GIB, Memory, over_ranks, stored_bytes


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
    model = "model={target: tests.test_memory.Tied, args: {}}"
    arguments = argv(tmp_path, model, f"optimizer.target={optimizer}", "optimizer.lr=0.01", "batch.micro=2")

    run_ranks(world_size, run, arguments)

    trained = 57 * 8
    for row in rows(tmp_path):
        assert row[names.WEIGHTS] * GIB == trained + 5 * 8
        assert row[names.GRADIENTS] * GIB == trained
        assert row[names.OPTIMIZER_STATE] * GIB == moments * trained + steps * 4
        assert (names.SMALLEST_PEAK in row) == (world_size > 1)
    assert "memory: weights 0.000473 MiB, gradients 0.000435 MiB" in (tmp_path / "run" / "log.txt").read_text()


def test_largest_and_smallest_over_the_ranks() -> None:
    of_ranks = [{names.PEAK_RSS: 2.0, names.WEIGHTS: 1.0, "x": 1.0}, {names.PEAK_RSS: 3.0, names.WEIGHTS: 1.0}]

    assert over_ranks(of_ranks) == {names.PEAK_RSS: 3.0, names.SMALLEST_PEAK: 2.0, names.WEIGHTS: 1.0}
    assert over_ranks(of_ranks[:1]) == of_ranks[0]


def test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks by phase, and activations: what the peak of forward and backward holds beside the rest."""
    peak, asked = {"allocated": 0.0}, torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(peak["allocated"]))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": 4})
    module = nn.Linear(256, 256, bias=False)  # 256 KiB
    optimizer = torch.optim.Adam(module.parameters())
    memory = Memory(asked, module, optimizer)

    def step(forward_backward: float, update: float) -> dict[str, float]:
        module(torch.ones(1, 256)).sum().backward()
        memory.mark(None)
        peak["allocated"] = forward_backward * GIB
        memory.mark(names.FORWARD_BACKWARD_PEAK)
        optimizer.step()
        peak["allocated"] = update * GIB
        memory.mark(names.OPTIMIZER_PEAK)
        optimizer.zero_grad()
        return memory.take()

    first, second = step(3.0, 4.0), step(5.0, 2.0)

    assert first[names.FORWARD_BACKWARD_PEAK] == 3
    assert first[names.PEAK_ALLOCATED] == first[names.OPTIMIZER_PEAK] == 4
    assert first[names.PEAK_RESERVED] == 10
    assert first[names.ALLOCATOR_RETRIES] == 4
    assert names.ACTIVATIONS not in first  # the optimizer had no state yet
    weights = 2**18 / GIB
    assert second[names.ACTIVATIONS] == pytest.approx(5 - 4 * weights - 4 / GIB, abs=1e-12)
