"""The gradient is that of the full batch in every arithmetic of a GPU, and the start says so."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu.devices import ON_CPU, REPEATABLE, run_on
from tests.helpers import argv, record, rows
from train.accumulate import compute_gradient
from train.config import load
from train.main import main
from train.run import build
from train.verify import main as verify

ROOT = Path(__file__).parents[2]
MODELS = {
    "mlp": (),
    "convnet": (
        "data={source: digits, args: {}, columns: {inputs: image, labels: label}}",
        "model={target: tests.gpu.test_exactness.Pictures, args: {}}",
    ),
    "gpt": (
        "data={source: python_docs, args: {}, tokenizer: bytes, block_size: 32, columns: {}}",
        "model={target: gpt, args: {vocabulary: 257, layers: 2, heads: 2, width: 32}}",
        "task=causal_lm",
    ),
}


class Pictures(nn.Module):
    """(samples, 64) -> (samples, 10), by convolutions over the 8 x 8 pictures of digits."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(144, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.reshape(-1, 1, 8, 8))


def verified(arguments: list[str]) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as printed:
        code = verify(arguments)
    return code, printed.getvalue()


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (ON_CPU, "precision=fp32"),
        pytest.param("cuda", "precision=fp32", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", "runtime.tf32=true precision=fp32", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", "precision=bf16", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", "precision=fp16", marks=pytest.mark.gpus(1)),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_verify_keeps_its_bounds(tmp_path: Path, model: str, kind: str, precision: str) -> None:
    """float64 to 1e-12, the rest within its rounding; convolutions in float32 are where cuDNN may
    choose otherwise.
    """
    [(code, printed)] = run_on(
        kind, 1, verified, argv(tmp_path, *MODELS[model], *precision.split())
    )

    assert code == 0, printed
    assert "\nfp64 " in printed


# those whose data are here; the others take what the Hub has
SHIPPED = ("digits", "csv", "lm", "text")


def start_of(name: str, folder: str, *overrides: str) -> tuple[str, str]:
    """(exact, its reasons) that the start of a shipped config says, after two steps."""
    quick = (
        "duration={steps: 2}",
        "schedule={name: constant}",
        "wandb.mode=disabled",
        "checkpoint.resume=never",
    )
    words = [
        str(ROOT / "configs" / f"{name}.yaml"),
        f"output_dir={folder}",
        "name=run",
        *quick,
        *overrides,
    ]
    code = main(words, "accumulate", compute_gradient)
    derived = (
        json.loads((Path(folder) / "run" / "plan.json").read_text())["derived"] if code == 0 else {}
    )
    return derived.get("exact", f"exit code {code}"), derived.get("exact_reasons", "")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.gpus(1)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_starts_verified(
    tmp_path: Path, name: str, deterministic: bool
) -> None:
    given = (f"runtime.deterministic={deterministic}", "precision=fp32")

    [(exact, reasons)] = run_on("cuda", 1, start_of, name, str(tmp_path), *given)

    assert exact == "verified", reasons


class Flash(nn.Module):
    """(samples, 6) -> (samples, 3), by attention whose kernel knows half precision only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        heads = self.first(inputs).view(len(inputs), 1, 4, 16)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            mixed = scaled_dot_product_attention(heads, heads, heads)
        return self.last(mixed.flatten(1)).float()


def trained(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.gpus(1)
def test_attention_in_half_precision_only_starts_and_trains(tmp_path: Path) -> None:
    """The CPU form, with a stand-in that refuses wide types: tests/exactness/test_half_only.py."""
    model = "model={target: tests.gpu.test_exactness.Flash, args: {}}"

    assert run_on(
        "cuda", 1, trained, argv(tmp_path, model, "precision=bf16", "duration={steps: 3}")
    ) == [0]

    derived = json.loads((tmp_path / "run" / "plan.json").read_text())["derived"]
    assert derived["exact"] == "declared"
    assert "the model runs in bf16 only" in derived["exact_reasons"]


@pytest.mark.gpus(2)
@pytest.mark.parametrize(
    "words", [("precision=fp64",), ("precision=bf16", "model.dtype=bf16")], ids=["fp64", "bf16"]
)
def test_two_ranks_have_the_curve_of_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    """bf16 parameters are summed in float32 by the explicit reduction. The CPU form:
    tests/test_loops.py.
    """
    given = (*words, "duration={steps: 50}", "batch.micro=2", "optimizer.lr=0.05", *REPEATABLE)
    one, two = (argv(tmp_path, *given, f"name={name}") for name in ("one", "two"))

    run_on("cuda", 1, record, one)
    run_on("cuda", 2, record, two)

    ours, expected = (
        [row["train/loss"] for row in rows(tmp_path, name=name)] for name in ("two", "one")
    )
    assert len(ours) == 50
    np.testing.assert_allclose(ours, expected, rtol=1e-10 if words[0] == "precision=fp64" else 2e-2)


def compilations(arguments: list[str]) -> int:
    torch._dynamo.utils.counters.clear()
    record(arguments)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.gpus(2)
def test_inductor_compiles_at_most_four_times(tmp_path: Path) -> None:
    """A ragged tail, an evaluation, an average of the weights, two ranks. The CPU form:
    tests/test_setup.py.
    """
    given = (
        "model.compile=true",
        "precision=fp32",
        "data.args={size: 37}",
        "duration={epochs: 3}",
        "batch.micro=3",
    )
    given += ("data.eval_fraction=0.2", "evaluate.every_steps=4", "ema.decay=0.9")

    for graphs in run_on("cuda", 2, compilations, argv(tmp_path, *given)):
        assert 1 <= graphs <= 4


def used(arguments: list[str]) -> tuple[str, float | None]:
    """(the card, the FLOPs of a sample or None where an operator has no formula)"""
    from train.metrics.mfu import flops_per_sample

    run = build(load(arguments), "accumulate")
    batch = next(iter(next(iter(run.windows)).micro_batches)).batch
    flops = flops_per_sample(run.learner, batch)
    name = (
        torch.cuda.get_device_name(run.learner.device)
        if run.learner.device.type == "cuda"
        else "cpu"
    )
    run.report.close("counted", 0)
    return name, flops


@pytest.mark.gpus(1)
def test_the_flops_of_a_transformer_are_counted(tmp_path: Path) -> None:
    """Whatever kernel attention takes on a GPU has a formula. The CPU form, by matrices:
    tests/metrics/test_mfu.py.
    """
    for precision in ("fp32", "bf16", "fp16"):
        given = (
            *MODELS["gpt"],
            f"precision={precision}",
            "duration={steps: 1}",
            f"name={precision}",
        )

        [(_, flops)] = run_on("cuda", 1, used, argv(tmp_path, *given))

        assert flops is not None


@pytest.mark.gpus(1)
def test_mfu_of_a_known_card_is_a_share(tmp_path: Path) -> None:
    from train.metrics.mfu import PEAKS

    if torch.cuda.get_device_name(0) not in PEAKS:
        pytest.skip(f"the peak of {torch.cuda.get_device_name(0)} is not in train/metrics/mfu.py")
    big = "model.args={vocabulary: 257, layers: 8, heads: 8, width: 512}"
    given = (
        *MODELS["gpt"],
        big,
        "precision=bf16",
        "duration={steps: 30}",
        "log.every_steps=10",
        "batch.effective=64",
    )

    run_on("cuda", 1, record, argv(tmp_path, *given, "data.block_size=512"))

    shares = [row["throughput/mfu"] for row in rows(tmp_path, "throughput/mfu")]
    assert shares
    assert all(0 < share < 0.75 for share in shares)
