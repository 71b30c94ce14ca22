"""Metrics are exact over a whole set, whatever the micro-batch and the ranks; wrong data is refused
before step 1.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.helpers import argv, points
from train.accumulate import compute_gradient
from train.batch.window import IGNORED
from train.config import load
from train.data import open_datasets
from train.main import main
from train.models.gpt import GPT
from train.models.make import make_model
from train.models.mlp import MLP
from train.run import build
from train.verify import main as verify

LM = (
    "data={source: tests.tasks.test_tasks.texts, block_size: 16, eval_fraction: 0.3}",
    "model={target: gpt, args: {vocabulary: 257, layers: 1, heads: 2, width: 16}}",
    "task={target: causal_lm, args: {bits_per_byte: true, document_mask: true}}",
    "evaluate.best=eval/bits_per_byte",
)
REGRESSION = ("data={source: tests.helpers.regression, eval_fraction: 0.3}", "task=regression")


def texts(size: int = 20) -> Dataset:
    random = np.random.default_rng(0)
    words = ["naïve", "blocks", "of", "text", "日本"]
    return Dataset.from_dict(
        {"text": [" ".join(random.choice(words, n)) for n in random.integers(1, 12, size)]}
    )


def evaluate(arguments: list[str]) -> dict[str, float]:
    run = build(load(arguments), "accumulate")
    assert run.evaluation is not None
    metrics = run.evaluation(run.learner.module)
    run.report.close("measured", 0)
    return metrics


@pytest.mark.parametrize(("world_size", "micro"), [(1, "all"), (1, "3"), (2, "3")])
def test_perplexity_and_bits_per_byte(
    run_ranks: Any, tmp_path: Path, world_size: int, micro: str
) -> None:
    arguments = argv(tmp_path, *LM, f"batch.micro={micro}")

    metrics = run_ranks(world_size, evaluate, arguments)[0]

    config = load(arguments).config
    columns = (
        open_datasets(config, ("inputs", "labels", "documents", "bytes")).evaluation[""].columns
    )
    model, labels = make_model(config), columns["labels"].long()
    assert isinstance(model, GPT)
    with torch.no_grad():
        logits = model(columns["inputs"], columns["documents"])
    nats = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
    assert metrics["loss"] == pytest.approx(nats / int((labels != IGNORED).sum()), rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]), rel=1e-12)
    assert metrics["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / int(columns["bytes"].sum()), rel=1e-12
    )


@pytest.mark.parametrize(("world_size", "micro"), [(1, "all"), (1, "2"), (2, "3")])
def test_regression(run_ranks: Any, tmp_path: Path, world_size: int, micro: str) -> None:
    arguments = argv(tmp_path, *REGRESSION, f"batch.micro={micro}")

    metrics = run_ranks(world_size, evaluate, arguments)[0]

    columns = open_datasets(load(arguments).config, ("inputs", "targets")).evaluation[""].columns
    targets = columns["targets"].double()
    torch.manual_seed(0)
    with torch.no_grad():
        errors = MLP(6, [8], 3).double()(columns["inputs"].double()) - targets
    spread = (targets - targets.mean(0)).square().sum()
    expected = {
        "loss": errors.square().mean().item(),
        "mse": errors.square().mean().item(),
        "rmse": errors.square().mean().sqrt().item(),
        "mae": errors.abs().mean().item(),
        "r2": (1 - errors.square().sum() / spread).item(),
        "samples": len(targets),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("overrides", [LM, REGRESSION])
def test_the_gradient_is_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...]
) -> None:
    assert verify(argv(tmp_path, *overrides)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "exact"


class Narrow(nn.Module):
    """(samples, 6) -> (samples, 1)"""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def one_target(shape: int = 0) -> Dataset:
    random = np.random.default_rng(0)
    targets = points(random, 20, shape) if shape else points(random, 20)
    return Dataset.from_dict({"inputs": points(random, 20, 6), "targets": targets})


def test_one_target_may_come_with_or_without_its_dimension(tmp_path: Path) -> None:
    means = []
    for shape in (0, 1):
        data = (
            f"data={{source: tests.tasks.test_tasks.one_target, args: {{shape: {shape}}}, "
            "eval_fraction: 0.5}"
        )
        means.append(
            evaluate(
                argv(tmp_path, data, "task=regression", "model=tests.tasks.test_tasks.Narrow")
            )["r2"]
        )

    assert means[0] == means[1]


def labelled(train: float = 0, held_out: int = 0, kind: str = "int64") -> dict[str, Dataset]:
    """Labels in 0..2, and one other in each split."""
    random = np.random.default_rng(0)

    def split(size: int, odd: int) -> Dataset:
        labels = np.append(random.integers(0, 3, size - 1), odd).astype(kind)
        return Dataset.from_dict({"inputs": points(random, size, 6), "labels": labels})

    return {"train": split(30, train), "test": split(10, held_out)}


SPLITS = "source: tests.tasks.test_tasks.labelled, eval_split: test"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (f"data={{{SPLITS}, args: {{train: 7}}}}",),
            "row 29 of split 'train' has the label 7",
        ),
        ((f"data={{{SPLITS}, args: {{train: 7}}}}",), "labels go from 0 to 2"),
        ((f"data={{{SPLITS}, args: {{held_out: -1}}}}",), "of split 'test' has the label -1"),
        ((f"data={{{SPLITS}, args: {{kind: float32, train: 0.5}}}}",), "task=regression"),
        ((*LM, "model.args.vocabulary=128"), "inputs holds 151, 156"),
        (
            (*REGRESSION, "model.args.outputs=4"),
            "targets have shape (3,), but the model returns (4,)",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    assert main(argv(tmp_path, *overrides), "accumulate", compute_gradient) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Answers(torch.nn.Module):
    """A model that returns its logits as others do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 3)
        self.how = how

    def forward(self, inputs: torch.Tensor) -> Any:
        logits = self.layer(inputs)
        return {
            "tensor": logits,
            "mapping": {"loss": None, "logits": logits},
            "one": (logits,),
            "two": (logits, logits),
            "named": {"scores": logits, "features": inputs},
            "flat": logits[:, 0],
            "none": None,
        }[self.how]


class Bare(torch.nn.Module):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.layers = (
            torch.nn.Linear(6, 3).requires_grad_(False) if frozen else [torch.nn.Linear(6, 3)]
        )


class Detached(Answers):
    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer(inputs).detach()


def answers(how: str) -> str:
    return f"model={{target: tests.tasks.test_tasks.Answers, args: {{how: {how}}}}}"


def test_logits_under_their_own_name_are_the_logits(tmp_path: Path) -> None:
    metrics = [
        evaluate(argv(tmp_path, HELD_OUT, answers(how))) for how in ("tensor", "mapping", "one")
    ]

    assert metrics[0] == metrics[1] == metrics[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            answers("two"),
            "the model Answers returns tuple with 0, 1, and the task needs one tensor",
        ),
        (answers("named"), "return super().forward(*inputs, **more)['scores']"),
        (
            answers("none"),
            "the model Answers returns NoneType, and the task needs one tensor. Let forward return "
            "it",
        ),
        (
            answers("flat"),
            "shape (8,) for 8 samples, and classification needs one number for each class",
        ),
        ("model=tests.tasks.test_tasks.Bare", "has no parameters, so there is nothing to train"),
        (
            "model={target: tests.tasks.test_tasks.Bare, args: {frozen: true}}",
            "have requires_grad=False",
        ),
        (
            "model={target: tests.tasks.test_tasks.Detached, args: {how: tensor}}",
            "no trainable parameter of Detached",
        ),
        ("model=tests.tasks.test_tasks.labelled", "gives dict; it must give a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_trained_is_told_what_to_return(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert main(argv(tmp_path, model), "accumulate", compute_gradient) == 2

    assert message in capsys.readouterr().err


def test_the_class_that_an_error_tells_to_write_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(argv(tmp_path, answers("two")), "accumulate", compute_gradient) == 2
    lines = [line[4:] for line in capsys.readouterr().err.splitlines() if line.startswith("    ")]
    (tmp_path / "one.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)

    assert evaluate(argv(tmp_path, HELD_OUT, "model={target: one.One, args: {how: two}}"))


HELD_OUT = "data.eval_fraction=0.3"


def test_whole_labels_stored_as_floats_are_classes(tmp_path: Path) -> None:
    losses = []
    for kind in ("int64", "float32"):
        data = f"data={{{SPLITS}, args: {{kind: {kind}}}}}"
        losses.append(evaluate(argv(tmp_path, data)))

    assert losses[0] == losses[1]


def test_labels_that_do_not_count_are_no_mistake(tmp_path: Path) -> None:
    arguments = argv(tmp_path, f"data={{{SPLITS}, args: {{train: {IGNORED}}}}}")

    assert main(arguments, "accumulate", compute_gradient) == 0


def test_text_is_shown_at_each_evaluation(tmp_path: Path) -> None:
    arguments = argv(tmp_path, *LM, "duration={steps: 2}", "evaluate.every_steps=1")

    assert main(arguments, "accumulate", compute_gradient) == 0

    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    table = [json.loads(line) for line in lines]
    assert [row["train/global_step"] for row in table] == [1, 1, 2, 2]
    assert all(row["prompt"] and row["text"] for row in table)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("sample    ") == 4
    assert all(letter.isprintable() or letter == "\n" for letter in log)
