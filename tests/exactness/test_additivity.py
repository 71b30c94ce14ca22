"""Whether a run is exact is tried before its first step, and said; verify shows it split by split."""

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from tests.helpers import argv, distance, flat, record, rows, steps
from train.accumulate import compute_gradient
from train.batch.window import Batch
from train.exactness.error_bounds import BOUNDS, ROUNDS, TOLERANCE, arithmetic
from train.main import main
from train.tasks.classification import Classification
from train.verify import main as verify


class Net(nn.Module):
    """(samples, 6) -> (samples, 3), with one layer of the kind that a test asks for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8) if "norm" in kind else nn.Identity()
        if "head of zeros" in kind:
            nn.init.zeros_(self.second.weight)
        self.drop = (
            nn.Dropout(0.0 if kind == "dropout of 0" else 0.3)
            if "dropout" in kind
            else nn.Identity()
        )

    def train(self, mode: bool = True) -> "Net":
        super().train(mode)
        if self.kind == "frozen batch norm":
            self.norm.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(inputs)))
        if "centred" in self.kind and self.training:
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
        return cross_entropy(
            embeddings @ embeddings.T, torch.arange(len(embeddings)), reduction="sum"
        )


class Balanced(Classification):
    """A little of what mixtures of experts add: at the start, when all classes are alike, a loss
    hardly tells.
    """

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits = model(batch["inputs"])
        balance = 0.01 * len(logits) * logits.softmax(1).mean(0).square().sum()
        return cross_entropy(logits, batch["labels"], reduction="sum") + balance


class Declared(Classification):
    couples_samples = True


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
    """Cross-entropy over the labels that count, and a penalty over the samples: each with its own
    denominator.
    """

    coefficients: Mapping[str, float] = {"penalty": 0.25}

    def loss_weight(self, batch: Batch) -> dict[str, float]:
        return {
            "cross_entropy": float((batch["labels"] != -100).sum()),
            "penalty": float(len(batch["labels"])),
        }

    def loss_sum(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch["inputs"])
        return {
            "cross_entropy": cross_entropy(logits, batch["labels"], reduction="sum"),
            "penalty": mse_loss(logits, torch.zeros_like(logits), reduction="sum"),
        }


def net(kind: str) -> str:
    return f"model={{target: tests.exactness.test_additivity.Net, args: {{kind: {kind}}}}}"


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
        (
            [net("dropout under a head of zeros")],
            "false",
            "other masks for other micro-batches (drop)",
        ),
        ([net("centred under a head of zeros")], "false", "the model couples samples"),
        ([net("head of zeros")], "verified", "adds up"),
        (
            ["task=tests.exactness.test_additivity.Balanced", "precision=fp32"],
            "false",
            "couples the samples",
        ),
        (
            ["task=tests.exactness.test_additivity.Declared"],
            "false",
            "Declared says of its loss that it couples the samples",
        ),
        (
            ["task=tests.exactness.test_additivity.Contrastive"],
            "false",
            "couples the samples of a batch",
        ),
        (["data.args.ignored=[0, 8]"], "declared", "none of the first 8 samples counts"),
        (["data.args.nan=[1]"], "false", "not finite before the first step"),
        (["task=tests.exactness.test_additivity.TwoTerms"], "verified", "adds up"),
        (["data.args.size=1"], "declared", "one sample cannot be split"),
    ],
)
def test_judged_before_the_first_step(
    tmp_path: Path, overrides: list[str], exact: str, reason: str
) -> None:
    assert start(tmp_path, *overrides) == 0

    actual, reasons = judged(tmp_path)
    assert actual == exact
    assert reason in reasons
    log = (tmp_path / "run" / "log.txt").read_text()
    assert reason in log
    assert ("exact     no:" in log) == (exact == "false")


def start_here(folder: str, overrides: list[str]) -> int:
    return start(Path(folder), *overrides)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["precision=bf16"], "bf16 rounds each micro-batch:"),
        (["precision=fp32", "model.dtype=bf16"], f"{ROUNDS['bf16 parameters']}:"),
        (["precision=bf16", "model.dtype=bf16"], f"{ROUNDS['bf16 parameters']}:"),
    ],
)
def test_low_precision_comes_with_its_bound(
    run_ranks: Any, tmp_path: Path, overrides: list[str], reason: str
) -> None:
    # a process has one precision for good
    assert run_ranks(1, start_here, str(tmp_path), overrides) == [0]

    exact, reasons = judged(tmp_path)
    assert exact == "false"
    assert (
        reasons == f"{reason} within 2e-02 of the big batch's gradient (scripts/verify.py measures)"
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (net("dropout"), "other masks"),
        ("task=tests.exactness.test_additivity.Balanced", "couples the samples"),
    ],
)
def test_low_precision_hides_nothing(
    run_ranks: Any, tmp_path: Path, override: str, reason: str
) -> None:
    """Autocast rounds by far more than these add."""
    assert run_ranks(1, start_here, str(tmp_path), ["precision=bf16", override]) == [0]

    _, reasons = judged(tmp_path)
    assert reason in reasons
    assert "bf16 rounds each micro-batch" in reasons


@pytest.mark.parametrize(
    ("device", "tf32", "dtype", "precision", "expected"),
    [
        ("cuda", True, torch.float32, "fp32", "tf32"),
        ("cuda", False, torch.float32, "fp32", "fp32"),
        ("cpu", True, torch.float32, "fp32", "fp32"),
        ("cuda", True, torch.float64, "fp64", "fp64"),
        ("cuda", True, torch.float32, "fp16", "fp16"),
        ("cuda", True, torch.bfloat16, "fp32", "bf16 parameters"),
    ],
)
def test_what_rounds_a_gradient(
    device: str, tf32: bool, dtype: torch.dtype, precision: str, expected: str
) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        actual = arithmetic(SimpleNamespace(device=torch.device(device), dtype=dtype), precision)
    finally:
        torch.set_float32_matmul_precision(before)

    assert actual == expected
    assert (expected in ROUNDS) is (expected not in ("fp32", "fp64"))
    assert {*ROUNDS, "fp32", "fp64"} == BOUNDS.keys() == TOLERANCE.keys()


def test_required_refuses_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        start(tmp_path, "batch.exact=required", "task=tests.exactness.test_additivity.Contrastive")
        == 2
    )

    stderr = capsys.readouterr().err
    assert "batch.exact=required" in stderr
    assert "couples the samples of a batch" in stderr
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
    assert start(tmp_path, f"task=tests.exactness.test_additivity.{task}") == 2
    assert message in capsys.readouterr().err


class Misspelt(TwoTerms):
    coefficients: Mapping[str, float] = {"penalties": 0.25}


class NoMapping(TwoTerms):
    coefficients: Any = 0.25


class NoNumber(TwoTerms):
    coefficients: Mapping[str, Any] = {"penalty": "a quarter"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "Misspelt",
            "names the term 'penalties', but the loss has the terms cross_entropy, penalty. Did "
            "you mean ",
        ),
        ("NoMapping", "coefficients must be {term: number}: got float"),
        ("NoNumber", "coefficients['penalty'] must be a finite number: got 'a quarter'"),
    ],
)
def test_coefficients_of_terms_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    assert start(tmp_path, f"task=tests.exactness.test_additivity.{task}") == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_trial_disturbs_nothing(tmp_path: Path) -> None:
    """Dropout draws the same masks, and BatchNorm has the same statistics, as if nothing had been
    tried.
    """
    for kind in ("dropout", "batch norm"):
        model = net(kind)
        gradients = []
        for exactness_check in ("with", "without"):
            with pytest.MonkeyPatch.context() as patch:
                if exactness_check == "without":
                    from train.exactness.additivity import Exactness

                    patch.setattr(
                        "train.exactness.preflight.check_additivity",
                        lambda *_: Exactness("declared", (), ("loss",)),
                    )
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
    terms = {
        "cross_entropy": cross_entropy(logits, labels),
        "penalty": logits.square().sum() / len(ids),
    }
    loss = terms["cross_entropy"] + 0.25 * terms["penalty"]
    values = {"loss": loss.item()} | {name: value.item() for name, value in terms.items()}
    return values, flat(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_several_terms_each_with_its_own_denominator(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    arguments = argv(
        tmp_path,
        "task=tests.exactness.test_additivity.TwoTerms",
        "batch.micro=2",
        "data.args.ignored=[1, 5]",
    )

    trace = run_ranks(world_size, record, arguments)[0]

    for row, k, ids in zip(rows(tmp_path), trace.gradients, steps(37, 8), strict=True):
        values, gradient = two_terms_at_once(
            arguments, trace.weights[k - 1], torch.from_numpy(ids.copy())
        )
        assert distance(trace.gradients[k], gradient) <= 1e-12
        for name, value in values.items():
            assert row[f"train/{name}"] == pytest.approx(value, rel=1e-12)


def verify_on_a_rank(arguments: list[str]) -> int:
    return verify(arguments)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("overrides", "arithmetic_name"),
    [(("precision=bf16",), "bf16"), (("model.dtype=bf16",), "bf16 parameters")],
)
def test_verify_in_low_precision(
    run_ranks: Any,
    tmp_path: Path,
    world_size: int,
    overrides: tuple[str, ...],
    arithmetic_name: str,
) -> None:
    codes = run_ranks(world_size, verify_and_tell, argv(tmp_path, "precision=fp32", *overrides))

    assert [code for code, _ in codes] == [0] * world_size
    output = codes[0][1]
    assert f"exact in fp64, within the rounding of {arithmetic_name}\n" in output
    assert f"within {arithmetic_name}\n" in output
    assert any(line.startswith("fp64 ") and line.endswith(" exact") for line in output.splitlines())
    assert "NOT EXACT" not in output


def verify_and_tell(arguments: list[str]) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as stdout:
        code = verify(arguments)
    return code, stdout.getvalue()


def test_verify_refuses_float16_on_a_cpu(run_ranks: Any, tmp_path: Path) -> None:
    assert run_ranks(1, verify_on_a_rank, argv(tmp_path, "precision=fp16")) == [2]


@pytest.mark.parametrize("world_size", [1, 2])
def test_verify_of_an_exact_config(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    codes = run_ranks(world_size, verify_on_a_rank, argv(tmp_path, "precision=fp32"))

    assert codes == [0] * world_size


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("task=tests.exactness.test_additivity.Mean", "reduction='sum'"),
        (net("batch norm"), "(norm): use GroupNorm"),
    ],
)
def test_verify_names_what_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, remedy: str
) -> None:
    code = verify(argv(tmp_path, override))

    stdout = capsys.readouterr().out
    assert code == 1
    assert "NOT EXACT (bound 1e-12)" in stdout
    assert remedy in stdout
    assert not (tmp_path / "run").exists()


class OneLayerOfDropout(nn.Module):
    """(samples, 6) -> (samples, 3). On a CPU, halves draw one after the other what the whole draws
    at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.only(inputs)
        return logits


class OtherForOne(nn.Module):
    """(samples, 6) -> (samples, 3), and twice that for one sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.only(inputs)
        return logits * 2 if len(inputs) == 1 else logits


class NoRoom(OtherForOne):
    """Takes five samples at most."""

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.only(inputs)
        return logits


class Watcher(OtherForOne):
    """(samples, 6) -> (samples, 3). Its running mean counts in eval mode only: no gradient tells."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.mean(0)
            return self.only(inputs)
        return self.only(inputs - self.mean)


def test_what_no_gradient_tells_is_not_exact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "model={target: tests.exactness.test_additivity.Watcher}"

    assert verify(argv(tmp_path, model)) == 1

    stdout = capsys.readouterr().out
    assert "NOT EXACT" not in stdout
    assert "the forward changes buffer mean" in stdout
    assert start(tmp_path, model) == 0
    assert judged(tmp_path)[0] == "false"
    assert "the loss in an evaluation is" in judged(tmp_path)[1]


def test_verify_finds_one_layer_of_dropout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        verify(argv(tmp_path, "model={target: tests.exactness.test_additivity.OneLayerOfDropout}"))
        == 1
    )

    stdout = capsys.readouterr().out
    assert stdout.count("NOT EXACT") == stdout.count("1 x ")
    assert "(only.0): same distribution, other numbers; a probability of 0 is exact" in stdout


def test_verify_tries_the_split_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        verify(
            argv(
                tmp_path,
                "model={target: tests.exactness.test_additivity.OtherForOne}",
                "batch.micro=1",
            )
        )
        == 1
    )

    verdicts = {
        line.split("(")[0]: line for line in capsys.readouterr().out.splitlines() if "1 x " in line
    }
    wrong = [split for split, line in verdicts.items() if "NOT EXACT" in line]
    assert [split.split()[1:4] for split in wrong] == [["1", "x", "8"]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_verify_takes_the_largest_step_that_fits(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    overrides = (
        "model={target: tests.exactness.test_additivity.NoRoom}",
        "batch.micro=2",
        "data.args.size=40",
        "precision=fp32",
    )

    codes = run_ranks(world_size, verify_and_tell, argv(tmp_path, *overrides, "batch.effective=9"))

    assert [code for code, _ in codes] == [0] * world_size
    output = codes[0][1]
    # in fp64 and fp32
    assert output.count("9 samples do not fit unsplit; the reference is a step of 5\n") == 2
    own = 3 if world_size == 1 else 2  # micro-batches of 2, on a rank
    for precision in ("fp64", "fp32"):
        assert any(
            line.startswith(precision) and f"{world_size} x {own} " in line
            for line in output.splitlines()
        )
