"""The loop that everybody knows, and where ours and it part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import Array, argv, distance, flat, record, steps, tiny, whole_batch
from train.batch import sample_ids
from train.models.mlp import MLP


def micro_batches(size: int, micro: int, epochs: int = 1) -> list[tuple[Tensor, Tensor]]:
    """(inputs, labels) in the run's order."""
    data = tiny(size).with_format("torch", dtype=torch.float64)[:]
    orders = [sample_ids(size, 0, epoch, 0, size) for epoch in range(epochs)]
    cuts = [torch.tensor(order[i : i + micro]) for order in orders for i in range(0, size, micro)]
    return [(data["inputs"][ids], data["labels"].long()[ids]) for ids in cuts]


def blog_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Sequence[tuple[Tensor, Tensor]],
    accumulation_steps: int,
) -> None:
    """As the blogs have it."""
    for i, (inputs, labels) in enumerate(loader):
        loss = cross_entropy(model(inputs), labels)
        loss = loss / accumulation_steps
        loss.backward()
        if (i + 1) % accumulation_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()


def fresh_model() -> nn.Module:
    torch.manual_seed(0)
    return MLP(6, [8], 3).double()


@pytest.mark.parametrize("world_size", [1, 2])
def test_same_parameters_where_micro_batches_are_equal(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    arguments = argv(
        tmp_path,
        "data.args.size=160",
        "batch.effective=16",
        f"batch.micro={4 // world_size}",
        "duration.epochs=2",
        "optimizer={target: adamw, lr: 0.01}",
    )
    model = fresh_model()

    trace = run_ranks(world_size, record, arguments)[0]
    blog_loop(
        model, torch.optim.AdamW(model.parameters(), lr=0.01), micro_batches(160, 4, epochs=2), 4
    )

    assert len(trace.gradients) == 20
    assert distance(trace.weights[-1], flat(list(model.parameters()))) <= 1e-12  # measured: 1e-16


class Remembering(torch.optim.SGD):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.5)
        self.gradients: list[Array] = []
        self.register_step_pre_hook(
            lambda *_: self.gradients.append(flat([p.grad for p in model.parameters()]))
        )


def test_on_a_ragged_tail_the_blog_loop_takes_half_a_step(run_ranks: Any, tmp_path: Path) -> None:
    """10 micro-batches, K = 4: the third step has 2 of them, and the blog divides their sum by 4."""
    arguments = argv(tmp_path, "data.args.size=40", "batch.effective=16", "batch.micro=4")
    model = fresh_model()
    optimizer = Remembering(model)

    (trace,) = run_ranks(1, record, arguments)
    blog_loop(model, optimizer, micro_batches(40, 4), 4)

    assert [len(sizes) for sizes in trace.sizes] == [4, 4, 2]
    _, full = whole_batch(arguments, trace.weights[2], steps(40, 16)[2], cross_entropy)
    for k in (1, 2):
        assert distance(trace.gradients[k], optimizer.gradients[k - 1]) <= 1e-12
    assert distance(trace.gradients[3], full) <= 1e-12
    assert distance(optimizer.gradients[2], 2 / 4 * full) <= 1e-12
    moved = [
        np.linalg.norm(w - trace.weights[2])
        for w in (flat(list(model.parameters())), trace.weights[3])
    ]
    assert moved[0] == pytest.approx(moved[1] / 2, rel=1e-10)


def test_on_a_ragged_micro_batch_the_blog_loop_weighs_samples_unequally(
    run_ranks: Any, tmp_path: Path
) -> None:
    """15 samples by 2: the last one has a micro-batch to itself and counts twice."""
    arguments = argv(tmp_path, "data.args.size=15", "batch.effective=15", "batch.micro=2")
    model = fresh_model()
    optimizer = Remembering(model)

    (trace,) = run_ranks(1, record, arguments)
    blog_loop(model, optimizer, micro_batches(15, 2), 8)

    _, full = whole_batch(arguments, trace.weights[0], steps(15, 15)[0], cross_entropy)
    assert distance(trace.gradients[1], full) <= 1e-12
    assert distance(optimizer.gradients[0], full) == pytest.approx(0.214, abs=0.001)
