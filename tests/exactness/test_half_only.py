"""Models that run in half precision only train, and verify leaves float64 out by name."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.main import main
from train.verify import main as verify


class HalfOnly(nn.Module):
    """(samples, 6) -> (samples, 3), by a kernel that takes half precision, as attention made for
    GPUs does.
    """

    def __init__(self, couples: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.couples = couples

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if hidden.dtype not in (torch.bfloat16, torch.float16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        if self.couples:
            hidden = hidden - hidden.mean(0)
        return self.second(hidden).float()


class NoDoubles(HalfOnly):
    """The same for float64 alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.float64:
            raise RuntimeError("this kernel takes no doubles")
        return self.second(self.first(inputs))


def model(name: str, couples: bool = False) -> str:
    return f"model={{target: tests.exactness.test_half_only.{name}, args: {{couples: {couples}}}}}"


def trained(folder: str, *overrides: str) -> tuple[int, dict[str, Any]]:
    """In a process of its own: it has one precision for good."""
    code = main(
        argv(Path(folder), *overrides, "precision=bf16", "duration={steps: 2}"),
        "accumulate",
        compute_gradient,
    )
    plan = Path(folder) / "run" / "plan.json"
    return code, json.loads(plan.read_text())["derived"] if plan.exists() else {}


def verified(folder: str, *overrides: str) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as stdout:
        code = verify(argv(Path(folder), *overrides))
    return code, stdout.getvalue()


def test_half_precision_only_is_declared(run_ranks: Any, tmp_path: Path) -> None:
    for name in ("required", "plain", "coupled"):
        (tmp_path / name).mkdir()

    # As in bf16 always.
    [(code, _)] = run_ranks(
        1, trained, str(tmp_path / "required"), model("HalfOnly"), "batch.exact=required"
    )
    assert code == 2

    [(code, derived)] = run_ranks(1, trained, str(tmp_path / "plain"), model("HalfOnly"))
    assert (code, derived["exact"]) == (0, "declared")
    assert (
        "the model runs in bf16 only (RuntimeError: FlashAttention only support"
        in derived["exact_reasons"]
    )
    assert "bf16 rounds each micro-batch" in derived["exact_reasons"]

    [(code, derived)] = run_ranks(
        1, trained, str(tmp_path / "coupled"), model("HalfOnly", couples=True)
    )
    assert (code, derived["exact"]) == (0, "false")
    assert "couples" in derived["exact_reasons"]


def test_verify_leaves_float64_out_by_name(run_ranks: Any, tmp_path: Path) -> None:
    [(code, output)] = run_ranks(1, verified, str(tmp_path), model("HalfOnly"), "precision=bf16")
    assert code == 0
    assert "fp64 is left out, the model does not run in it: FlashAttention only support" in output
    assert "fp64 left out, within the rounding of bf16" in output

    [(code, output)] = run_ranks(1, verified, str(tmp_path), model("NoDoubles"), "precision=fp32")
    assert code == 0
    assert "fp64 is left out, the model does not run in it: this kernel takes no doubles" in output
    assert not any(line.startswith("fp64 ") for line in output.splitlines())
