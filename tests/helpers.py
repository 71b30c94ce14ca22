"""Small data, models and tasks, named in configs by their dotted path, and what a rank records
while it trains.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from train.batch import sample_ids
from train.batch.window import Batch, Window
from train.config import load, resolve
from train.distributed.ranks import Ranks
from train.loop import fit
from train.run import Run, build
from train.step import ComputeGradient
from train.tasks.classification import IGNORED, Classification

Array = NDArray[Any]

CONFIG = """
name: run
batch: {effective: 8, audit_every_steps: 0}
data: {source: tests.helpers.tiny}
model: {target: mlp, args: {inputs: 6, hidden: [8], outputs: 3}}
task: classification
optimizer: {target: sgd, lr: 0.5}
duration: {epochs: 1}
precision: fp64
log: {every_steps: 1}
wandb: {mode: disabled}
checkpoint: {resume: never}
"""


def argv(folder: Path, *overrides: str) -> list[str]:
    """The command line of a run on tiny data, kept in `folder`."""
    config = folder / "tiny.yaml"
    config.write_text(CONFIG)
    return [str(config), f"output_dir={folder}", *overrides]


# Data


def points(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def tiny(
    size: int = 37,
    ignored: Sequence[int] = (0, 0),
    nan: Sequence[int] = (),
    loud: Sequence[int] = (0, 0),
) -> Dataset:
    """Points in three classes. The other arguments are places in the order of epoch 0, seed 0.

    ignored, loud: [start, stop) without a label, or with inputs five times as large. nan: with an
    input of NaN.
    """
    random, order = np.random.default_rng(0), sample_ids(size, 0, 0, 0, size)
    inputs, labels = points(random, size, 6), random.integers(0, 3, size)
    inputs[order[slice(*loud)]] *= 5
    inputs[order[list(nan)], 0] = np.nan
    labels[order[slice(*ignored)]] = IGNORED
    return Dataset.from_dict({"inputs": inputs, "labels": labels})


def stream(size: int = 37, shards: int = 3) -> IterableDataset:
    """The samples of tiny, one after the other; a generator, so nobody knows how many. The first
    shard is the longest: 7/10 of the samples.
    """
    longest = size * 7 // 10 if shards > 1 else size
    cuts = [0, *np.linspace(longest, size, shards).astype(int)]

    def some(parts: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        data = tiny(size)
        for start, stop in parts:
            yield from (data[i] | {"place": i} for i in range(start, stop))

    return IterableDataset.from_generator(some, gen_kwargs={"parts": list(pairwise(cuts))})


def tokens(
    size: int = 24, length: int = 7, ignored: Sequence[int] = (0, 0), loud: Sequence[int] = (0, 0)
) -> Dataset:
    """Padded sequences with 0 to `length` labels that count; the other arguments: as in tiny."""
    random, order = np.random.default_rng(0), sample_ids(size, 0, 0, 0, size)
    inputs, labels = points(random, size, length, 6), random.integers(0, 3, (size, length))
    inputs[order[slice(*loud)]] *= 5
    counts = random.integers(0, length + 1, size)
    counts[order[slice(*ignored)]] = 0
    labels[np.arange(length) >= counts[:, None]] = IGNORED
    return Dataset.from_dict({"inputs": inputs, "labels": labels})


def regression(size: int = 37) -> Dataset:
    random = np.random.default_rng(0)
    return Dataset.from_dict(
        {"inputs": points(random, size, 6), "targets": points(random, size, 3)}
    )


def several_labels(size: int = 37) -> Dataset:
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, (size, 3)).astype(np.float32)
    return Dataset.from_dict({"inputs": points(random, size, 6), "targets": targets})


# Models


class PerToken(nn.Module):
    """(samples, T, 6) -> (samples, 3, T)"""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs).transpose(1, 2)


class Stale(nn.Module):
    """A model that was used before: its parameters come with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


# Tasks


class WeightedCE(Classification):
    """Each class has a weight; the loss is divided by the sum of the weights of its samples."""

    class_weights = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)

    def loss_weight(self, batch: Batch) -> float:
        return float(self.class_weights[batch["labels"]].sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits = model(batch["inputs"])
        return cross_entropy(
            logits, batch["labels"], weight=self.class_weights.to(logits), reduction="sum"
        )


class Regression:
    """Mean squared error over all targets."""

    columns = ("inputs", "targets")
    loss = staticmethod(mse_loss)

    def loss_weight(self, batch: Batch) -> float:
        return float(batch["targets"].numel())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return self.loss(model(batch["inputs"]), batch["targets"], reduction="sum")

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        return {"loss": (self.loss_sum(model, batch), self.loss_weight(batch))}


class SeveralLabels(Regression):
    """Binary cross-entropy over all labels of all samples."""

    loss = staticmethod(binary_cross_entropy_with_logits)


# What a rank records


@dataclass
class Trace:
    """One rank's view of a run. An array holds all parameters, one after the other."""

    windows: list[Window] = field(default_factory=list)  # without their tensors
    ids: list[list[int]] = field(default_factory=list)  # of each window: this rank's samples
    # before each window; one more: after the last
    weights: list[Array] = field(default_factory=list)
    # by step: what optimizer.step was given; 0 for None
    gradients: dict[int, Array] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    skipped_steps: int = 0

    @property
    def sizes(self) -> list[list[int]]:
        return [[m.samples for m in window.micro_batches] for window in self.windows]


def flat(tensors: Sequence[Tensor]) -> Array:
    """Where they are divided among the ranks, all ranks call it together."""
    whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
    joined = torch.cat([t.detach().flatten() for t in whole])
    # NumPy has no bfloat16
    return (joined.float() if joined.dtype is torch.bfloat16 else joined).cpu().numpy().copy()


def record(
    arguments: Sequence[str],
    loop: str = "accumulate",
    compute_gradient: ComputeGradient | None = None,
    prepare: Callable[[Run, Trace], None] = lambda run, trace: None,
    left_out: Sequence[int] = (),
) -> Trace:
    """Train as `python -m train.LOOP` does, on this rank; the windows of the steps `left_out` never
    reach the loop.
    """
    run, trace = build(load(arguments), loop), Trace()
    prepare(run, trace)

    def watched() -> Iterator[Window]:
        for window in run.windows:
            if window.k in left_out:
                continue
            trace.windows.append(
                replace(
                    window, micro_batches=tuple(replace(m, batch={}) for m in window.micro_batches)
                )
            )
            trace.ids.append(
                [
                    i
                    for m in window.micro_batches
                    if m.samples
                    for i in m.batch["sample_id"].tolist()
                ]
            )
            trace.weights.append(flat(run.learner.parameters))
            yield window

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        k = trace.windows[-1].k
        trace.gradients[k] = flat(
            [torch.zeros_like(p) if p.grad is None else p.grad for p in run.learner.parameters]
        )
        trace.rates[k] = optimizer.param_groups[0]["lr"]

    run.learner.optimizer.register_step_pre_hook(before_step)
    ours = importlib.import_module(f"train.{loop}").compute_gradient
    fit(replace(run, windows=watched()), run.watch(compute_gradient or ours))
    if run.evaluation is not None:  # it follows the last step
        run.finish()
    run.close("finished", 0)
    trace.weights.append(flat(run.learner.parameters))
    run.learner.skips.look()
    trace.skipped_steps = run.learner.skips.total
    return trace


def record_all(several: Sequence[Sequence[str]], **options: Any) -> list[Trace]:
    """One run after the other, in the same process group."""
    return [record(arguments, **options) for arguments in several]


def rows(folder: Path, key: str = "train/loss", name: str = "run") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that hold `key`."""
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def rank_group() -> Ranks:
    """This rank among the others, without a model."""
    dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


# What they are compared with: plain PyTorch, in one process


def whole_batch(
    arguments: Sequence[str], weights: Array, ids: Array, loss: Callable[..., Tensor]
) -> tuple[float, Array]:
    """(loss, gradient) of one backward pass over all samples `ids` at once, in float64, at the
    given weights.

    `loss(outputs, labels or targets)` is a mean, as PyTorch's own losses are.
    """
    config = load(arguments).config
    module = resolve(config.model.target, "train.models")(**config.model.args).double()
    parameters = [p for p in module.parameters() if p.requires_grad]
    nn.utils.vector_to_parameters(torch.from_numpy(weights).double(), parameters)
    data = resolve(config.data.source, "")(**config.data.args).with_format(
        "torch", dtype=torch.float64
    )[:]
    chosen = torch.from_numpy(np.array(ids))
    answers = data["labels"].long() if "labels" in data else data["targets"]
    value = loss(module(data["inputs"][chosen]), answers[chosen])
    return value.item(), flat(torch.autograd.grad(value, parameters))


def steps(size: int, effective: int, epochs: int = 1, seed: int = 0) -> list[Array]:
    """The samples of each step, in order: the epoch's permutation, cut; the last piece of an epoch
    may be smaller.
    """
    orders = [sample_ids(size, seed, epoch, 0, size) for epoch in range(epochs)]
    return [
        order[start : start + effective] for order in orders for start in range(0, size, effective)
    ]


def distance(ours: Array, expected: Array) -> float:
    """||ours - expected|| / ||expected||"""
    return float(np.linalg.norm(ours.astype(np.float64) - expected) / np.linalg.norm(expected))
