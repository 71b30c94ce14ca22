"""MFU: the FLOPs of models whose count is known, where it is absent, and that counting leaves no
trace.
"""

import statistics
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.helpers import argv, record, rows
from train import metric_names as names
from train.config import load
from train.metrics import mfu as utilisation
from train.metrics.mfu import PEAKS, flops_per_sample
from train.run import build

FORWARD = 2 * (6 * 8 + 8 * 3)  # of the tiny MLP, for one sample
MODEL = 3 * FORWARD - 2 * 6 * 8  # nobody needs the gradient of the inputs
LM = (
    "data={source: python_docs, tokenizer: bytes, block_size: 32, columns: {}}",
    "model={target: gpt, args: {vocabulary: 257, layers: 2, heads: 2, width: 16}}",
    "task=causal_lm",
    "duration={steps: 1}",
)


def counted(arguments: list[str], by_matrices: bool = False) -> tuple[float | None, bool]:
    """(FLOPs per sample, whether gradients and random numbers were left alone)"""
    run = build(load(arguments), "accumulate")
    batch = next(iter(next(iter(run.windows)).micro_batches)).batch
    state, gradients = torch.random.get_rng_state(), [p.grad for p in run.learner.parameters]
    with sdpa_kernel(SDPBackend.MATH) if by_matrices else nullcontext():
        flops = flops_per_sample(run.learner, batch)
    run.report.close("counted", 0)
    same = all(p.grad is g for p, g in zip(run.learner.parameters, gradients, strict=True))
    return flops, same and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), MODEL),
        (("model.freeze=['layers.0.*']",), FORWARD + 2 * 8 * 3),
        (("model.compile=aot_eager",), MODEL),
        (("model.args.dropout=0.5", "precision=bf16"), MODEL),
        (("model={target: tests.helpers.Stale, args: {}}",), 2 * 2 * 6 * 3),
    ],
)
def test_of_small_models(
    run_ranks: Any, tmp_path: Path, overrides: tuple[str, ...], expected: float
) -> None:
    assert run_ranks(1, counted, argv(tmp_path, *overrides)) == [(expected, True)]


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_of_a_transformer(run_ranks: Any, tmp_path: Path, checkpointing: str) -> None:
    """Six times the weights of its matrix products for each token, and the attention; nothing
    computed twice counts.
    """
    weights = 2 * (3 + 1 + 4 + 4) * 16 * 16 + 257 * 16  # of two blocks, and of the last layer
    attention = 2 * 2 * 2 * 32 * 32 * 16  # two products of T x T x width in each block
    arguments = argv(tmp_path, *LM, f"memory.activation_checkpointing={checkpointing}")

    assert run_ranks(1, counted, arguments, True) == [(3 * (2 * weights * 32 + attention), True)]


@pytest.mark.parametrize(
    "overrides", [LM, ("model={target: tests.metrics.test_mfu.Foreign, args: {}}",)]
)
def test_absent_where_an_operator_has_no_formula(
    run_ranks: Any, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """torch counts no attention of a CPU; nor does it know an operator of somebody's own."""
    assert run_ranks(1, counted, argv(tmp_path, *overrides)) == [(None, True)]


@torch.library.custom_op("utilisation_test::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@product.register_kernel("cpu")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("matrix", torch.eye(6))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(product(inputs, self.matrix))


def trained(arguments: list[str], peak: float | None) -> Any:
    """As if this CPU were a card with that peak."""
    if peak:
        PEAKS["cpu"] = {"fp64": peak}
    try:
        return record(arguments).weights
    finally:
        PEAKS.pop("cpu", None)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_tells_it_and_is_otherwise_the_same(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    more = ("model.args.dropout=0.5", "log.every_steps=2", "batch.micro=2")
    plain = run_ranks(world_size, trained, argv(tmp_path, *more, "name=plain"), None)
    logged = run_ranks(world_size, trained, argv(tmp_path, *more), 1e6)

    assert all((a == b).all() for a, b in zip(plain[0], logged[0], strict=True))
    assert not rows(tmp_path, names.MFU, "plain")
    found = rows(tmp_path)
    ratios = [
        row[names.MFU] / (MODEL * row[names.SAMPLES_PER_SECOND] / (1e6 * world_size))
        for row in found
    ]
    assert len(ratios) == 3
    # The row's own clock runs on for some microseconds; for longer where another process gets this
    # core just then.
    assert statistics.median(ratios) == pytest.approx(1, rel=0.1)


def test_every_card_has_a_peak_for_each_arithmetic() -> None:
    assert all(
        set(peaks) == {"bf16", "fp16", "tf32", "fp32"} for peaks in utilisation.PEAKS.values()
    )
