"""The guard stops a run before the update that would let the ranks drift apart. The ranks are real."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv, flat
from train.accumulate import compute_gradient
from train.config import load
from train.guard import NotReduced, RanksDisagree
from train.loop import fit
from train.run import build
from train.step import Learner
from train.window import Window


class Branching(nn.Module):
    """`second` is used in the micro-batches that hold sample 0 only, as an expert or an adapter might be."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(inputs, outputs)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        outputs: Tensor = self.first(inputs)
        return outputs + self.second(inputs) if self.calls % 2 else outputs


def never_reduced(learner: Learner, window: Window) -> Tensor:
    with learner.accelerator.no_sync(learner.model):
        return compute_gradient(learner, window)


def fit_until_stopped(
    arguments: list[str], tamper_on_rank: int | None = None, gradient: Any = compute_gradient
) -> tuple[str, str, bool]:
    """(what stopped the run, its message, whether the weights are those from before)."""
    run = build(load(arguments), "accumulate")
    before = flat(run.learner.parameters)

    def tampered(learner: Learner, window: Window) -> Tensor:
        losses = gradient(learner, window)
        if run.ranks.rank == tamper_on_rank:
            learner.parameters[0].grad.view(-1)[0] += 1e-9
        return losses

    told = ("", "")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            fit(run, run.watch(tampered))
    except (NotReduced, RanksDisagree) as error:
        told = (type(error).__name__, str(error))
    run.report.close("stopped", 1)
    return (*told, np.array_equal(before, flat(run.learner.parameters)))


def test_a_branch_that_the_last_micro_batch_does_not_take(run_ranks: Any, tmp_path: Path) -> None:
    arguments = argv(
        tmp_path,
        "model={target: tests.test_guard.Branching, args: {inputs: 6, outputs: 3}}",
        "batch.accumulation_steps=2",
    )

    told = run_ranks(2, fit_until_stopped, arguments)

    for kind, message, unchanged in told:
        assert kind == "NotReduced"
        assert "step 1: second.weight, second.bias took no part" in message
        assert unchanged


@pytest.mark.parametrize("world_size", [2, 3])
def test_one_rank_holds_another_gradient(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    told = run_ranks(world_size, fit_until_stopped, argv(tmp_path), 1)

    for kind, message, unchanged in told:
        assert kind == "RanksDisagree"
        assert "step 1: the gradients of rank(s) 1 differ from rank 0's in " in message
        assert unchanged


def test_no_reduction_at_all(run_ranks: Any, tmp_path: Path) -> None:
    told = run_ranks(2, fit_until_stopped, argv(tmp_path, "batch.micro=2"), None, never_reduced)

    assert [(kind, unchanged) for kind, _, unchanged in told] == [("RanksDisagree", True)] * 2


def test_silent_where_all_is_well(run_ranks: Any, tmp_path: Path) -> None:
    told = run_ranks(2, fit_until_stopped, argv(tmp_path, "duration={steps: 5}"))

    assert [kind for kind, _, _ in told] == ["", ""]
    assert not any(unchanged for _, _, unchanged in told)
