"""What the first backward pass finds: which parameters get a gradient, and tensors that no model
holds.
"""

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv, record, rows
from train.batch import sample_ids
from train.config import load
from train.exactness.first_backward import ForeignGradient, first_backward
from train.run import Run, build
from train.tasks.classification import Classification

HERE = "tests.exactness.test_first_backward"
SOMEWHERE = torch.ones((), requires_grad=True)


class Scaled(Classification):
    """Its loss is that of a classification, times what `scale` gives."""

    def scale(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        loss = super().loss_sum(model, batch)
        assert isinstance(loss, Tensor)
        return loss * self.scale(batch)


class Attribute(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def scale(self, batch: Any) -> Tensor:
        return self.temperature


class InLossFunction(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.losses = {"main": [nn.Sequential(nn.Identity(), nn.Linear(1, 1))]}

    def scale(self, batch: Any) -> Tensor:
        found: Tensor = self.losses["main"][0](torch.ones(1)).sum()
        return found


class InPartial(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.scaled_by = partial(torch.mul, torch.ones((), requires_grad=True))

    def scale(self, batch: Any) -> Tensor:
        return self.scaled_by(torch.ones(()))


class OfTheClass(Scaled):
    weight = nn.Parameter(torch.ones(()))

    def scale(self, batch: Any) -> Tensor:
        return self.weight


class OfTheFile(Scaled):
    def scale(self, batch: Any) -> Tensor:
        return SOMEWHERE


class Teacher(Scaled):
    """Held by the task, and right: one teacher is frozen, the other is only asked without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 1).requires_grad_(False)
        self.asked = nn.Linear(6, 1)

    def scale(self, batch: Any) -> Tensor:
        with torch.no_grad():
            return (
                self.asked(batch["inputs"][:1].float()) + self.frozen(batch["inputs"][:1].float())
            ).sum()


class InputGradient(Classification):
    """Derives by its inputs, as a gradient penalty does: they require a gradient, and nobody is to
    train them.
    """

    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        with torch.enable_grad():
            inputs = batch["inputs"].clone().requires_grad_()
            loss = super().loss_sum(model, {**batch, "inputs": inputs})
            (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            return loss + gradient.square().sum()


class Late(Scaled):
    """Its parameter is used from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1)])

    def scale(self, batch: Any) -> Tensor:
        if torch.is_grad_enabled() and batch["sample_id"][0] == sample_ids(37, 0, 0, 16, 17)[0]:
            return cast(Tensor, self.layers[0](torch.ones(1)).sum())
        return torch.ones(())


class Unregistered(nn.Module):
    """A list hides its layers from PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.blocks = [nn.Linear(6, 6).double()]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.blocks[0](inputs))
        return outputs


def built(folder: Path, *overrides: str) -> Run:
    run = build(load(argv(folder, "batch.exact=ignore", *overrides)), "accumulate")
    run.close("looked at", 0)
    return run


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("task=Attribute", "Attribute.temperature"),
        ("task=InLossFunction", "InLossFunction.losses['main'][0].1.weight"),
        ("task=InPartial", "InPartial.scaled_by[0]"),
        ("task=OfTheClass", "OfTheClass.weight"),
        ("task=OfTheFile", "a tensor of shape ()"),
        ("model=Unregistered", "the model.blocks[0].weight"),
    ],
)
def test_what_would_never_be_trained_is_refused_by_name(
    tmp_path: Path, target: str, named: str
) -> None:
    key, name = target.split("=")

    with pytest.raises(ForeignGradient) as refused:
        built(tmp_path, f"{key}={{target: {HERE}.{name}}}")

    assert named in str(refused.value)


@pytest.mark.usefixtures("leaves_files_open")
def test_what_is_used_later_ends_the_run_by_name(tmp_path: Path) -> None:
    with pytest.raises(ForeignGradient, match=r"Late\.layers\.0\.\w+, which requires a gradient"):
        record(argv(tmp_path, "batch.exact=ignore", f"task={{target: {HERE}.Late}}"))

    assert [row["train/global_step"] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize("task", ["Teacher", "InputGradient"])
def test_what_is_not_to_be_trained_is_no_reason_to_refuse(tmp_path: Path, task: str) -> None:
    built(tmp_path, f"task={{target: {HERE}.{task}}}")


class Counting(nn.Module):
    """Draws, counts in a buffer, comes with a gradient; more than `fits` samples are more than
    memory holds.
    """

    def __init__(self, fits: int = 100) -> None:
        super().__init__()
        self.fits = fits
        self.last, self.first, self.unused = nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.first.weight.grad = torch.ones(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.fits:
            raise torch.OutOfMemoryError
        self.calls += 1
        outputs: Tensor = self.last(nn.functional.dropout(self.first(inputs)))
        return outputs


@pytest.mark.parametrize("fits", [100, 3])
def test_it_names_what_got_a_gradient_and_leaves_no_trace(tmp_path: Path, fits: int) -> None:
    run = built(tmp_path, f"model={{target: {HERE}.Counting, args: {{fits: {fits}}}}}")
    learner, module = run.learner, run.learner.module
    calls = module.calls.clone()
    batch = {name: torch.randn(8, 6).double() for name in ["inputs"]} | {
        "labels": torch.zeros(8, dtype=torch.long)
    }
    draws = torch.random.get_rng_state()

    found = first_backward(learner, batch, seed=0)

    assert found == ["last.bias", "last.weight", "first.bias", "first.weight"]
    assert [p.grad for p in learner.parameters] == [None] * 6
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert torch.equal(module.calls, calls)
