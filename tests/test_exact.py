"""Whether a run is exact is tried before its first step, and said; verify shows it split by split."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tests.helpers import argv, distance, flat, record, rows, steps
from train.accumulate import compute_gradient
from train.entry import main
from train.tasks.classification import Classification
from train.verify import main as verify
from train.window import Batch


class Net(nn.Module):
    """(samples, 6) -> (samples, 3), with one layer of the kind that a test asks for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if "norm" in kind else nn.Identity()
        self.drop = nn.Dropout(0.0 if kind == "dropout of 0" else 0.3) if "dropout" in kind else nn.Identity()

    def train(self, mode: bool = True) -> "Net":
        super().train(mode)
        if self.kind == "frozen batch norm":
            self.norm.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(inputs)))
        if self.kind == "centred" and self.training:
            hidden = hidden - hidden.mean(0)
        if self.kind == "functional noise" and self.training:
            hidden = hidden + 0.1 * torch.rand_like(hidden)
        return self.second(hidden)


class Mean(Classification):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return cross_entropy(model(batch["inputs"]), batch["labels"])


class Contrastive(Classification):
    """Each sample against all others of its micro-batch."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        embeddings = nn.functional.normalize(model(batch["inputs"]), dim=1)
        return cross_entropy(embeddings @ embeddings.T, torch.arange(len(embeddings)), reduction="sum")


class OneWhateverTheBatch(Classification):
    def loss_weight(self, batch: Batch) -> float:
        return 1.0


class Vector(Classification):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")


class OtherNames(Classification):
    def loss_weight(self, batch: Batch) -> dict[str, float]:
        return {"labels": 1.0}


class TwoTerms(Classification):
    """Cross-entropy over the labels that count, and a penalty over the samples: each with its own denominator."""

    coefficients: Mapping[str, float] = {"penalty": 0.25}

    def loss_weight(self, batch: Batch) -> dict[str, float]:
        return {"cross_entropy": float((batch["labels"] != -100).sum()), "penalty": float(len(batch["labels"]))}

    def loss_sum(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch["inputs"])
        return {
            "cross_entropy": cross_entropy(logits, batch["labels"], reduction="sum"),
            "penalty": mse_loss(logits, torch.zeros_like(logits), reduction="sum"),
        }


def net(kind: str) -> str:
    return f"model={{target: tests.test_exact.Net, args: {{kind: {kind}}}}}"


def start(folder: Path, *overrides: str) -> int:
    return main(argv(folder, "duration={steps: 1}", *overrides), "accumulate", compute_gradient)


def judged(folder: Path) -> tuple[str, str]:
    derived = json.loads((folder / "run" / "plan.json").read_text())["derived"]
    return derived["exact"], derived["exact_reasons"]


@pytest.mark.parametrize(
    ("overrides", "exact", "reason"),
    [
        ([], "verified", "adds up"),
        ([net("batch norm")], "false", "BatchNorm in train mode"),
        ([net("frozen batch norm")], "verified", "adds up"),
        (
            [net("dropout")],
            "false",
            "other masks for other micro-batches (drop)",
        ),
        ([net("dropout of 0")], "verified", "adds up"),
        ([net("functional noise")], "false", "other masks"),
        ([net("centred")], "false", "the model couples samples"),
        (["task=tests.test_exact.Contrastive"], "false", "couples the samples of a batch"),
        (["data.args.ignored=[0, 8]"], "declared", "none of the first 8 samples counts"),
        (["data.args.nan=[1]"], "false", "not finite before the first step"),
        (["task=tests.test_exact.TwoTerms"], "verified", "adds up"),
        (["data.args.size=1"], "declared", "one sample cannot be split"),
    ],
)
def test_judged_before_the_first_step(tmp_path: Path, overrides: list[str], exact: str, reason: str) -> None:
    assert start(tmp_path, *overrides) == 0

    found, reasons = judged(tmp_path)
    assert found == exact
    assert reason in reasons
    told = (tmp_path / "run" / "log.txt").read_text()
    assert reason in told
    assert ("exact     no:" in told) == (exact == "false")


def start_in_bf16(folder: str) -> int:
    return start(Path(folder), "precision=bf16")


def test_low_precision_comes_with_its_bound(run_ranks: Any, tmp_path: Path) -> None:
    assert run_ranks(1, start_in_bf16, str(tmp_path)) == [0]  # a process has one precision for good

    exact, reasons = judged(tmp_path)
    assert exact == "false"
    assert "bf16 rounds each micro-batch: the loss of a split batch differs by " in reasons


def test_required_refuses_before_a_folder_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "batch.exact=required", "task=tests.test_exact.Contrastive") == 2

    told = capsys.readouterr().err
    assert "batch.exact=required" in told
    assert "couples the samples of a batch" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Vector", "must be a 0-dim tensor"),
        ("OtherNames", "loss_weight has the terms labels, loss_sum loss"),
        ("Mean", "returns a mean"),
        ("OneWhateverTheBatch", "must count what adds up"),
    ],
)
def test_what_is_no_loss_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    assert start(tmp_path, f"task=tests.test_exact.{task}") == 2
    assert message in capsys.readouterr().err


def test_the_trial_disturbs_nothing(tmp_path: Path) -> None:
    """Dropout draws the same masks, and BatchNorm has the same statistics, as if nothing had been tried."""
    for kind in ("dropout", "batch norm"):
        model = net(kind)
        gradients = []
        for place in ("with", "without"):
            with pytest.MonkeyPatch.context() as patch:
                if place == "without":
                    from train.exact import Exactness

                    patch.setattr("train.exact.judge", lambda *_: Exactness("declared", (), ("loss",)))
                gradients.append(record(argv(tmp_path, model, "duration={steps: 3}")).gradients[3])
        assert np.array_equal(*gradients)


def two_terms_at_once(arguments: list[str], weights: Any, ids: Any) -> tuple[dict[str, float], Any]:
    """The terms, and the gradient, of one backward pass over all samples."""
    from tests.helpers import load, resolve, tiny

    config = load(arguments).config
    module = resolve(config.model.target, "train.models")(**config.model.args).double()
    nn.utils.vector_to_parameters(torch.from_numpy(weights), module.parameters())
    data = tiny(**config.data.args).with_format("torch", dtype=torch.float64)[:]
    inputs, labels = data["inputs"][ids], data["labels"][ids].long()
    logits = module(inputs)
    terms = {"cross_entropy": cross_entropy(logits, labels), "penalty": logits.square().sum() / len(ids)}
    loss = terms["cross_entropy"] + 0.25 * terms["penalty"]
    values = {"loss": loss.item()} | {name: value.item() for name, value in terms.items()}
    return values, flat(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_several_terms_each_with_its_own_denominator(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    arguments = argv(tmp_path, "task=tests.test_exact.TwoTerms", "batch.micro=2", "data.args.ignored=[1, 5]")

    trace = run_ranks(world_size, record, arguments)[0]

    for row, k, ids in zip(rows(tmp_path), trace.gradients, steps(37, 8), strict=True):
        values, gradient = two_terms_at_once(arguments, trace.weights[k - 1], torch.from_numpy(ids.copy()))
        assert distance(trace.gradients[k], gradient) <= 1e-12
        for name, value in values.items():
            assert row[f"train/{name}"] == pytest.approx(value, rel=1e-12)


def verify_on_a_rank(arguments: list[str]) -> int:
    return verify(arguments)


@pytest.mark.parametrize("world_size", [1, 2])
def test_verify_of_an_exact_config(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    codes = run_ranks(world_size, verify_on_a_rank, argv(tmp_path, "precision=fp32"))

    assert codes == [0] * world_size


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("task=tests.test_exact.Mean", "reduction='sum'"),
        (net("batch norm"), "(norm): use GroupNorm"),
    ],
)
def test_verify_names_what_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, remedy: str
) -> None:
    code = verify(argv(tmp_path, override))

    told = capsys.readouterr().out
    assert code == 1
    assert "NOT EXACT (bound 1e-12)" in told
    assert remedy in told
    assert not (tmp_path / "run").exists()
