"""Every precision, loop, wrapper and number of ranks against plain PyTorch: one big batch on one process.

OMP_NUM_THREADS=1 python -m tests.campaigns.precisions [--write]        --write: into docs/precision.md

Real ranks over gloo. At each of 50 steps the gradient that the optimizer is given is compared with that of the whole
effective batch at the same weights, in float64 and in the precision of the run; then the curve with that of one rank
and one micro-batch. What a CPU lacks is put in by hand: autocast to float16 under the loop's own scaler, and for TF32
the rounding of what enters and leaves each nn.Linear. Exit code 1 where a row is out of its bounds.
"""

import argparse
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy

from tests.campaigns.faults.table import commit
from tests.campaigns.launched import ROOT, write_between
from tests.conftest import run_ranks
from tests.helpers import Array, Trace, argv, distance, flat, points, record, rows, steps
from train import metric_names as names
from train.config import load, resolve
from train.distributed.parallel import Ddp
from train.exactness.additivity import BOUNDS
from train.run import Run
from train.step import ComputeGradient

SIZE, EFFECTIVE = 60, 8  # the last batch of an epoch has 4
EPOCHS = 7  # 56 steps


@dataclass(frozen=True)
class Precision:
    name: str
    overrides: tuple[str, ...]
    dtype: torch.dtype  # of the parameters
    autocast: torch.dtype | None = None

    @property
    def bound(self) -> float:
        """What the program says of it: the largest error against one big batch in the same precision."""
        return BOUNDS[self.name]


PRECISIONS = (
    Precision("fp64", ("precision=fp64",), torch.float64),
    Precision("fp32", ("precision=fp32",), torch.float32),
    Precision("tf32", ("precision=fp32",), torch.float32),
    Precision("fp16", ("precision=bf16",), torch.float32, torch.float16),
    Precision("bf16", ("precision=bf16",), torch.float32, torch.bfloat16),
    Precision("bf16 parameters", ("precision=fp32", "model.dtype=bf16"), torch.bfloat16),
)
CURVES = {"fp64": 1e-10, "fp32": 1e-5, "tf32": 2e-2, "fp16": 2e-2, "bf16": 5e-2, "bf16 parameters": 5e-2}
"""The largest relative difference of a loss to that of one rank and one micro-batch, over the first 50 steps."""

WRAPPERS = {"none": (), "DDP": (), "explicit": ("runtime.reduction=explicit",)}
"""How the ranks share the work. Another kind, such as FSDP2, is one more entry, and its ranks in `wrappers`."""


@dataclass(frozen=True)
class Case:
    name: str
    overrides: tuple[str, ...]
    precisions: tuple[str, ...] = tuple(precision.name for precision in PRECISIONS)


HERE = "tests.campaigns.precisions"
CASES = (
    Case("mlp", (f"data.args.size={SIZE}",)),
    Case(
        "convnet",
        (
            f"data={{source: {HERE}.images}}",
            "model={target: convnet, args: {outputs: 3, widths: [8, 16]}}",
        ),
        ("fp64", "fp32", "fp16", "bf16", "bf16 parameters"),
    ),
    Case(
        "gpt, chunked loss, checkpointed blocks",
        (
            f"data={{source: {HERE}.texts}}",
            "model={target: gpt, args: {vocabulary: 64, layers: 2, heads: 2, width: 16}}",
            "task=causal_lm",
            "memory={chunked_loss: 5, activation_checkpointing: true}",
        ),
        ("fp64", "fp32", "fp16", "bf16", "bf16 parameters"),
    ),
)


def images() -> Dataset:
    random = np.random.default_rng(0)
    return Dataset.from_dict({"inputs": points(random, SIZE, 6, 6), "labels": random.integers(0, 3, SIZE)})


def texts(length: int = 7) -> Dataset:
    """Of which a fifth of the labels count nowhere."""
    random = np.random.default_rng(0)
    tokens, labels = random.integers(0, 64, (2, SIZE, length))
    labels[random.random(labels.shape) < 0.2] = -100
    return Dataset.from_dict({"inputs": tokens, "labels": labels})


@dataclass(frozen=True)
class Spec:
    """A run."""

    case: Case
    precision: Precision
    wrapper: str
    ranks: int
    loop: str

    @property
    def name(self) -> str:
        words = (self.case.name, self.precision.name, self.wrapper, str(self.ranks), self.loop)
        return "-".join(words).replace(" ", "_").replace(",", "")

    def arguments(self, folder: Path, num_steps: int) -> list[str]:
        batch = f"batch={{effective: {EFFECTIVE}, micro: {'all' if self.loop == 'standard' else 1}}}"
        given = (batch, f"duration={{steps: {num_steps}}}", "optimizer={target: adamw, lr: 0.01}")
        more = (*self.case.overrides, *self.precision.overrides, *WRAPPERS[self.wrapper])
        return argv(folder, f"name={self.name}", *given, *more)


def wrappers(precision: Precision, ranks: int) -> Sequence[str]:
    if precision.name == "bf16 parameters":  # summed in float32, which DDP cannot
        return ("explicit",)
    return ("none",) if ranks == 1 else ("DDP", "explicit")


# A rank


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one rank."""

    weights: list[Array]  # before each step
    gradients: dict[int, Array]  # by step
    reductions: float  # of all gradients, per step
    memory_kib: float  # weights, gradients, optimizer and activations


def measure(specs: Sequence[tuple[Spec, list[str]]], compute: ComputeGradient | None = None) -> list[Found]:
    """One run after the other, in one process group. `compute`: in place of the loop's own."""
    with redirect_stdout(io.StringIO()):
        return [_measure(spec, arguments, compute) for spec, arguments in specs]


def _measure(spec: Spec, arguments: list[str], compute: ComputeGradient | None) -> Found:
    reduced: Counter[int] = Counter()  # numbers, by step
    size = 0

    def install(run: Run, trace: Trace) -> None:
        nonlocal size
        size = sum(p.numel() for p in run.learner.parameters)
        if spec.precision.autocast == torch.float16:
            run.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def count(numbers: int) -> None:
            reduced[trace.windows[-1].k if trace.windows else 0] += numbers  # 0: before the first step

        if isinstance(run.learner.parallel, Ddp):

            def hook(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
                count(bucket.buffer().numel())
                return allreduce_hook(None, bucket)

            run.learner.model.register_comm_hook(None, hook)
        else:
            own = run.ranks.add_up

            def add_up(tensors: Sequence[Tensor]) -> None:
                count(sum(tensor.numel() for tensor in tensors))
                own(tensors)

            run.ranks.add_up = add_up  # type: ignore[method-assign]

    AcceleratorState._reset_state()  # it knows one precision per process
    with without_a_gpu(spec.precision):
        trace = record(arguments, spec.loop, compute, install)
    per_step = [reduced[k] / size for k in trace.gradients]
    return Found(
        weights=trace.weights,
        gradients=trace.gradients,
        reductions=max(per_step) if spec.ranks > 1 else 0.0,
        memory_kib=_memory_kib(rows(Path(load(arguments).config.output_dir), names.LOSS, spec.name)),
    )


def _memory_kib(logged: Sequence[dict[str, Any]]) -> float:
    kinds = (names.WEIGHTS, names.GRADIENTS, names.OPTIMIZER_STATE, names.ACTIVATIONS)
    return max(sum(row.get(kind, 0.0) for kind in kinds) for row in logged) * 2**20


@contextmanager
def without_a_gpu(precision: Precision) -> Iterator[None]:
    """On a CPU accelerate has no autocast to float16, and torch no TF32."""
    with ExitStack() as stack:
        if precision.name == "tf32":
            stack.enter_context(mock.patch("torch.nn.functional.linear", _linear_in_tf32))
        if precision.autocast == torch.float16:
            where = "accelerate.accelerator.get_mixed_precision_context_manager"
            stack.enter_context(mock.patch(where, return_value=torch.autocast("cpu", torch.float16)))
        yield


def _linear_in_tf32(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _ProductInTF32.apply(inputs, weight)
    return product if bias is None else product + bias


class _ProductInTF32(torch.autograd.Function):
    """inputs @ weight.T, and its gradient: what enters a product is rounded, sums are kept in float32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _rounded(inputs) @ _rounded(weight).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        rounded = _rounded(gradient)
        return rounded @ _rounded(weight), rounded.flatten(0, -2).T @ _rounded(inputs).flatten(0, -2)


def _rounded(numbers: Tensor) -> Tensor:
    """To the nearest of those with 10 bits of mantissa."""
    if numbers.dtype != torch.float32:
        return numbers
    bits = numbers.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


# Plain PyTorch, and the comparison


def whole_batch(precision: Precision, arguments: list[str], weights: Array, ids: Array) -> Array:
    """The gradient of the mean loss of these samples at once, in `precision`."""
    config = load(arguments).config
    module = resolve(config.model.target, "train.models")(**config.model.args).to(precision.dtype)
    for part in module.modules():
        if (
            isinstance(part, nn.RMSNorm) and part.eps is None
        ):  # else float64 would be another function, not less rounding
            part.eps = torch.finfo(torch.float64 if config.precision == "fp64" else torch.float32).eps
    parameters = list(module.parameters())
    nn.utils.vector_to_parameters(torch.from_numpy(weights).to(precision.dtype), parameters)
    data = resolve(config.data.source, "")(**config.data.args).with_format("torch")[:]
    inputs = data["inputs"][ids.tolist()]
    if inputs.is_floating_point():
        inputs = inputs.to(precision.dtype)
    with without_a_gpu(precision):
        with torch.autocast("cpu", precision.autocast or torch.bfloat16, enabled=precision.autocast is not None):
            logits = module(inputs)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(wide.flatten(0, -2), data["labels"][ids.tolist()].flatten())
        scale = 1024.0 if precision.autocast == torch.float16 else 1.0
        return flat(torch.autograd.grad(loss * scale, parameters)) / scale


@dataclass(frozen=True, kw_only=True)
class Row:
    spec: Spec
    of_float64: float  # the worst step's error, over all ranks
    of_same: float
    of_curve: float  # the largest relative difference of a loss
    reductions: float
    memory_kib: float

    @property
    def is_right(self) -> bool:
        expected = 1.0 if self.spec.ranks > 1 else 0.0
        bounds = self.of_same <= self.spec.precision.bound and self.of_curve <= CURVES[self.spec.precision.name]
        return bounds and self.reductions == expected

    def __str__(self) -> str:
        spec = self.spec
        cells = [spec.case.name, spec.wrapper, spec.precision.name, str(spec.ranks), spec.loop]
        cells += [f"{error:.1e}" for error in (self.of_float64, self.of_same, spec.precision.bound, self.of_curve)]
        cells += [f"{self.reductions:g}" if spec.ranks > 1 else "", f"{self.memory_kib:.1f}"]
        return f"| {' | '.join(cells)} | {'yes' if self.is_right else 'NO'} |"


HEAD = """\
| case | wrapper | precision | ranks | loop | error, float64 | error, same | bound | curve | reductions | KiB | right |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def compare(folder: Path, spec: Spec, arguments: list[str], of_ranks: Sequence[Found]) -> Row:
    errors: dict[str, list[float]] = {"float64": [], "same": []}
    for k, ids in enumerate(steps(SIZE, EFFECTIVE, EPOCHS)[: len(of_ranks[0].gradients)], start=1):
        weights = of_ranks[0].weights[k - 1]
        for name, precision in (("float64", PRECISIONS[0]), ("same", spec.precision)):
            expected = whole_batch(precision, arguments, weights, ids)
            errors[name] += [distance(found.gradients[k], expected) for found in of_ranks]
    return Row(
        spec=spec,
        of_float64=max(errors["float64"]),
        of_same=max(errors["same"]),
        of_curve=_curve_difference(folder, spec),
        reductions=max(found.reductions for found in of_ranks),
        memory_kib=max(found.memory_kib for found in of_ranks),
    )


def _curve_difference(folder: Path, spec: Spec) -> float:
    """From one rank and one micro-batch in the same precision, which has run before."""
    base = replace(spec, ranks=1, loop="standard", wrapper=wrappers(spec.precision, 1)[0])
    ours, expected = (np.array([row[names.LOSS] for row in rows(folder, names.LOSS, s.name)]) for s in (spec, base))
    return float(np.max(np.abs(ours - expected) / np.abs(expected)))


def session(folder: Path, num_steps: int, case: Case, precision: Precision) -> Iterator[Row]:
    for ranks in (1, 2):
        pairs = product(wrappers(precision, ranks), ("standard", "accumulate"))
        specs = [Spec(case, precision, wrapper, ranks, loop) for wrapper, loop in pairs]
        asked = [(spec, spec.arguments(folder, num_steps)) for spec in specs]
        found = run_ranks(ranks, measure, asked)
        for (spec, arguments), of_ranks in zip(asked, zip(*found, strict=True), strict=True):
            yield compare(folder, spec, arguments, of_ranks)


INTRODUCTION = """\
`OMP_NUM_THREADS=1 python -m tests.campaigns.precisions --write` ({commit}): {steps} steps of AdamW, effective batch
{effective} of {size} samples (the last step of an epoch has 4), on real ranks over gloo; standard: one micro-batch per
rank, accumulate: micro-batches of 1.

- *error*: the worst step's relative error of the gradient against plain PyTorch, one backward pass over the whole batch
  at the same weights: in float64, and in the same precision. *bound*: what `verify` allows for the second.
- *curve*: the largest relative difference of a loss from that of one rank and one micro-batch.
- *reductions*: numbers that a rank hands in per step, over the number of its parameters.
- *KiB*: weights, gradients, optimizer and activations of a rank, as logged; activations are not counted under
  checkpointing.

tf32 is computed here by rounding what enters each product of an `nn.Linear` to 10 bits of mantissa, fp16 by autocast on
a CPU under the loop's own scaler: neither has been seen on a GPU.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/precision.md")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case, precision in product(CASES, PRECISIONS):
            if precision.name not in case.precisions:
                continue
            for row in session(Path(folder), asked.steps, case, precision):
                print(row, flush=True)
                found.append(row)
    if asked.write:
        introduction = INTRODUCTION.format(commit=commit(), steps=asked.steps, effective=EFFECTIVE, size=SIZE)
        table = "\n".join([HEAD, *map(str, found)])
        write_between(ROOT / "docs" / "precision.md", "precisions", f"{introduction}\n{table}")
    sys.exit(0 if all(row.is_right for row in found) else 1)


if __name__ == "__main__":
    main()
