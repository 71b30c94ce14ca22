"""Evaluation is exact on any number of ranks, and training does not notice it."""

import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.helpers import Trace, argv, record_all, rows
from train.batch.window import Batch
from train.config import load
from train.data import open_datasets
from train.models.mlp import MLP
from train.run import build
from train.tasks.classification import IGNORED, Classification

DROPOUT = "model.args.dropout=0.5"


class Marking(Classification):
    """Adds a metric that tells which samples were taken: the sum of 2 ** sample_id, for fewer than
    50 samples.
    """

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        marks = 2.0 ** batch["sample_id"].double()
        return {
            **super().eval_sums(model, batch),
            "marks": (marks.sum(), torch.tensor(float(len(marks)))),
        }


class Noisy(Classification):
    """Draws random numbers while it evaluates, as the losses of diffusion models do."""

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        inputs = batch["inputs"] + torch.randn_like(batch["inputs"])
        return super().eval_sums(model, {**batch, "inputs": inputs})


def evaluate(arguments: list[str]) -> tuple[dict[str, float], bool, bool]:
    """(metrics, whether all of the model is in train mode after it, whether the training's RNG is
    as it was)
    """
    run = build(load(arguments), "accumulate")
    assert run.evaluation is not None
    before = torch.get_rng_state()
    metrics = run.evaluation(run.learner.module)
    training = all(module.training for module in run.learner.model.modules())
    return metrics, training, bool(torch.equal(torch.get_rng_state(), before))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("size", "count"), [(112, 28), (44, 11), (8, 2), (4, 1)])
def test_exact_on_any_number_of_ranks(
    run_ranks: Any, tmp_path: Path, world_size: int, size: int, count: int
) -> None:
    data = (f"data.args={{size: {size}, ignored: [0, {size // 8}]}}", "data.eval_fraction=0.25")
    arguments = argv(tmp_path, "task=tests.test_evaluate.Marking", DROPOUT, "batch.micro=3", *data)

    ranks = run_ranks(world_size, evaluate, arguments)

    columns = open_datasets(load(arguments).config, Classification.columns).evaluation[""].columns
    inputs, labels = columns["inputs"].double(), columns["labels"]
    torch.manual_seed(0)
    with torch.no_grad():
        logits = MLP(6, [8], 3).double()(inputs)
    counted = labels != IGNORED
    for metrics, training, _ in ranks:
        assert metrics == ranks[0][0]
        assert metrics["samples"] == count
        assert metrics["marks"] * count == pytest.approx(2**count - 1, rel=1e-12), (
            "not every sample once"
        )
        assert metrics["loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-12)
        assert metrics["accuracy"] == (logits.argmax(1) == labels)[counted].double().mean().item()
        assert training


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_metric_without_a_label_is_absent(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    arguments = argv(tmp_path, "data.args={size: 12, ignored: [0, 12]}", "data.eval_fraction=0.25")

    for metrics, _, _ in run_ranks(world_size, evaluate, arguments):
        assert metrics == {"samples": 3}


@pytest.mark.parametrize("task", ["classification", "tests.test_evaluate.Noisy"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_leaves_the_random_numbers_of_training_alone(
    run_ranks: Any, tmp_path: Path, world_size: int, task: str
) -> None:
    arguments = argv(tmp_path, f"task={task}", DROPOUT, "data.eval_fraction=0.25", "batch.micro=2")

    for _, _, rng_kept in run_ranks(world_size, evaluate, arguments):
        assert rng_kept


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_is_the_same_with_and_without(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    given = (
        DROPOUT,
        "data.args.size=60",
        "data.eval_fraction=0.25",
        "batch.micro=2",
        "duration.epochs=2",
    )
    often = argv(tmp_path, *given, "name=often", "evaluate={every_steps: 1, at_start: true}")
    at_the_end = argv(tmp_path, *given, "name=rarely")

    ranks: list[list[Trace]] = run_ranks(world_size, record_all, [often, at_the_end])

    assert len(rows(tmp_path, "eval/loss", "often")) == 1 + 12
    assert len(rows(tmp_path, "eval/loss", "rarely")) == 1
    for ours, expected in ranks:
        assert ours.ids == expected.ids
        assert ours.sizes == expected.sizes
        assert np.array_equal(ours.weights, expected.weights)


class FailsLate(Classification):
    """The third evaluation raises on the last rank."""

    evaluations = 0

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        self.evaluations += 1
        if self.evaluations == 3 and os.environ["RANK"] == "1":
            raise KeyError("mine")
        return super().eval_sums(model, batch)


def fails_late(arguments: list[str]) -> tuple[int, str]:
    from train.accumulate import compute_gradient
    from train.main import main

    with redirect_stderr(io.StringIO()) as said:
        return main(arguments, "accumulate", compute_gradient), said.getvalue()


def test_what_was_trained_is_saved_before_an_evaluation_that_fails_ends_the_run(
    run_ranks: Any, tmp_path: Path
) -> None:
    given = (
        "task=tests.test_evaluate.FailsLate",
        "data.eval_fraction=0.25",
        "evaluate.every_steps=1",
    )

    ranks = run_ranks(2, fails_late, argv(tmp_path, *given, "checkpoint.every_steps=100"))

    assert [code for code, _ in ranks] == [2, 2]
    assert "rank 1: eval_sums of task FailsLate raised: KeyError: 'mine'" in ranks[0][1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert [row["train/global_step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert len(rows(tmp_path, "eval/loss")) == 2


class Frozen(torch.nn.Module):
    """A trained norm layer that its owner has frozen for good, as one does when fine-tuning."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        if not hasattr(self, "was_asked"):
            self.was_asked = True
            self.norm.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.norm(inputs))


def test_what_is_frozen_stays_frozen(tmp_path: Path) -> None:
    run = build(
        load(argv(tmp_path, "model=tests.test_evaluate.Frozen", "data.eval_fraction=0.2")),
        "accumulate",
    )

    before = [module.training for module in run.learner.module.modules()]
    run.evaluate()
    run.report.close("measured", 0)

    assert before == [True, False, True]
    assert [module.training for module in run.learner.module.modules()] == before


def wide() -> Dataset:
    return Dataset.from_dict({"inputs": np.full((4, 2, 3), 1 / 3), "labels": np.arange(4)})


def test_float64_data_is_read_as_such(tmp_path: Path) -> None:
    config = load(argv(tmp_path, "data.source=tests.test_evaluate.wide")).config

    columns = open_datasets(config, ("inputs", "labels")).train.columns

    assert columns["inputs"].dtype == torch.float64
    assert (columns["inputs"] == 1 / 3).all()
    assert columns["labels"].dtype == torch.int64
