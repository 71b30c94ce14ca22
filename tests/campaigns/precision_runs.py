"""The runs of the campaign of precisions (tests/campaigns/precisions.py), and what a rank of one
measures.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers import Array, Trace, argv, points, record, rows
from train import metric_names as names
from train.config import load
from train.distributed.ddp import Ddp
from train.distributed.sharded import Sharded
from train.run import Run
from train.step import ComputeGradient

SIZE, EFFECTIVE = 60, 8  # the last batch of an epoch has 4


@dataclass(frozen=True)
class Precision:
    name: str
    overrides: tuple[str, ...]
    dtype: torch.dtype  # of the parameters
    autocast: torch.dtype | None = None


PRECISIONS = (
    Precision("fp64", ("precision=fp64",), torch.float64),
    Precision("fp32", ("precision=fp32",), torch.float32),
    Precision("tf32", ("precision=fp32",), torch.float32),
    Precision("fp16", ("precision=bf16",), torch.float32, torch.float16),
    Precision("bf16", ("precision=bf16",), torch.float32, torch.bfloat16),
    Precision("bf16 parameters", ("precision=fp32", "model.dtype=bf16"), torch.bfloat16),
)
WRAPPERS = {"none": (), "DDP": (), "explicit": ("runtime.reduction=explicit",), "FSDP2": ()}
"""How the ranks share the work, and what a config says for it."""
# what accelerate's launcher tells its ranks
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@dataclass(frozen=True)
class Case:
    name: str
    overrides: tuple[str, ...]
    precisions: tuple[str, ...] = tuple(precision.name for precision in PRECISIONS)


HERE = "tests.campaigns.precision_runs"
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
    return Dataset.from_dict(
        {"inputs": points(random, SIZE, 6, 6), "labels": random.integers(0, 3, SIZE)}
    )


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
        batch = (
            f"batch={{effective: {EFFECTIVE}, micro: {'all' if self.loop == 'standard' else 1}}}"
        )
        given = (batch, f"duration={{steps: {num_steps}}}", "optimizer={target: adamw, lr: 0.01}")
        more = (*self.case.overrides, *self.precision.overrides, *WRAPPERS[self.wrapper])
        return argv(folder, f"name={self.name}", *given, *more)


def wrappers(precision: Precision, ranks: int) -> Sequence[str]:
    if precision.name == "bf16 parameters":  # summed in float32, which DDP cannot
        return ("explicit",) if ranks == 1 else ("explicit", "FSDP2")
    return ("none",) if ranks == 1 else ("DDP", "explicit", "FSDP2")


# What a rank measures


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one rank."""

    weights: list[Array]  # before each step
    gradients: dict[int, Array]  # by step
    reductions: float  # of all gradients, per step
    memory_kib: float  # weights, gradients, optimizer and activations


def measure(
    specs: Sequence[tuple[Spec, list[str]]], compute: ComputeGradient | None = None
) -> list[Found]:
    """One run after the other, in one process group. `compute`: in place of the loop's own."""
    with redirect_stdout(io.StringIO()):
        return [_measure(spec, arguments, compute) for spec, arguments in specs]


def _measure(spec: Spec, arguments: list[str], compute: ComputeGradient | None) -> Found:
    handed_in: Counter[int] = Counter()  # numbers, by step
    size = 0

    def install(run: Run, trace: Trace) -> None:
        nonlocal size
        size = sum(p.numel() for p in run.learner.parameters)
        if spec.precision.autocast == torch.float16:
            run.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def count(numbers: int) -> None:
            # 0: before the first step
            handed_in[trace.windows[-1].k if trace.windows else 0] += numbers

        count_reductions(run, count)

    AcceleratorState._reset_state()  # it knows one precision per process
    with (
        without_a_gpu(spec.precision),
        mock.patch.dict(os.environ, FSDP2 if spec.wrapper == "FSDP2" else {}),
    ):
        trace = record(arguments, spec.loop, compute, install)
    return Found(
        weights=trace.weights,
        gradients=trace.gradients,
        reductions=max(handed_in[k] / size for k in trace.gradients) if spec.ranks > 1 else 0.0,
        memory_kib=_memory_kib(
            rows(Path(load(arguments).config.output_dir), names.LOSS, spec.name)
        ),
    )


def count_reductions(run: Run, count: Callable[[int], None]) -> None:
    """Have `count` called with the numbers of each gradient that this rank hands in to be added up."""
    if isinstance(run.learner.parallel, Ddp):

        def hook(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            count(bucket.buffer().numel())
            return allreduce_hook(None, bucket)

        run.learner.model.register_comm_hook(None, hook)
    elif isinstance(run.learner.parallel, Sharded):
        torch.autograd.backward = _scattering(torch.autograd.backward, count)
    else:
        own = run.ranks.add_up

        def add_up(tensors: Sequence[Tensor]) -> None:
            count(sum(tensor.numel() for tensor in tensors))
            own(tensors)

        run.ranks.add_up = add_up  # type: ignore[method-assign]


def _scattering(backward: Any, count: Callable[[int], None]) -> Any:
    class Scattered(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "reduce_scatter" in str(func):
                # what enters
                count(max(t.numel() for t in tree_leaves(args) if isinstance(t, Tensor)))
            return func(*args, **(kwargs or {}))

    def watched(*args: Any) -> None:
        with Scattered():
            backward(*args)

    return watched


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
            stack.enter_context(
                mock.patch(where, return_value=torch.autocast("cpu", torch.float16))
            )
        yield


def _linear_in_tf32(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _ProductInTF32.apply(inputs, weight)
    return product if bias is None else product + bias


class _ProductInTF32(torch.autograd.Function):
    """inputs @ weight.T, and its gradient: what enters a product is rounded, sums are kept in
    float32.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return rounded(inputs) @ rounded(weight).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        narrow = rounded(gradient)
        return narrow @ rounded(weight), narrow.flatten(0, -2).T @ rounded(inputs).flatten(0, -2)


def rounded(numbers: Tensor) -> Tensor:
    """To the nearest of those with 10 bits of mantissa."""
    if numbers.dtype != torch.float32:
        return numbers
    bits = numbers.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
