"""What an animal of the zoo is, the data it is tried on, and its true error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from train.batch.window import Batch
from train.randomness import Generators

SAMPLES, WIDTH, CLASSES, LENGTH, WORDS = 12, 6, 3, 7, 11

STEPS, RATE = 4, 0.1

CUTS = ([12], [4, 4, 4], [5, 4, 3], [3, 3, 3, 3], [1] * 12)
"""Micro-batches of a step of 12 samples; the first one is the whole."""


class Labels:
    """Cross-entropy, summed over the samples."""

    columns = ("inputs", "labels")
    column = "inputs"

    def loss_weight(self, batch: Batch) -> Any:
        return float(len(batch["labels"]))

    def loss_sum(self, model: Any, batch: Batch) -> Any:
        return cross_entropy(model(batch[self.column]), batch["labels"], reduction="sum")


class Words(Labels):
    """The same, of a model that reads tokens."""

    column = "tokens"


@dataclass(frozen=True, kw_only=True)
class Animal:
    name: str
    exact: bool  # by construction; the true error is measured all the same
    model: Callable[[], nn.Module]
    task: Callable[[], Any] = Labels
    smallest: int = 1  # of a micro-batch that it takes


def data(samples: int = SAMPLES, seed: int = 0) -> Batch:
    """Columns for all animals, in float32, as users have them."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(random.normal(size=shape).astype(np.float32))

    lengths = random.integers(3, LENGTH + 1, samples)
    tokens = torch.from_numpy(random.integers(1, WORDS, (samples, LENGTH)))
    tokens[torch.arange(LENGTH) >= torch.from_numpy(lengths)[:, None]] = 0
    token_labels = torch.where(tokens == 0, -100, tokens % CLASSES)
    token_labels[1] = -100  # of one sample no label counts
    return {
        "inputs": normal(samples, WIDTH),
        "labels": torch.arange(samples) % CLASSES,
        "targets": normal(samples, CLASSES),
        "images": normal(samples, 2, 5, 5),
        "tokens": tokens,
        "token_labels": token_labels,
        "sample_weight": normal(samples).abs() + 0.1,
        "sample_id": torch.arange(samples) * 3 + 1,
    }


def true_error(animal: Animal, draws: int = 1) -> float:
    """How far four steps of SGD on the full batch, and on the same in micro-batches, end apart.

    The larger one of: the distance of the weights, relative to how far they moved; that of the loss
    in eval mode, relative to it. The largest over the cuts; the mean over `draws` of the random
    numbers.
    """
    errors = []
    for draw in range(draws):
        start, full, full_loss = _trained(animal, CUTS[0], 100 * draw)
        moved = torch.linalg.vector_norm(full - start)
        largest = 0.0
        for i, cut in enumerate(CUTS[1:], 1):
            if min(cut) < animal.smallest:
                continue
            _, weights, loss = _trained(animal, cut, 100 * draw + i)
            difference = float(torch.linalg.vector_norm(weights - full) / moved)
            largest = max(largest, difference, abs(loss - full_loss) / abs(full_loss))
        errors.append(largest)
    return float(np.mean(errors))


def _trained(animal: Animal, cut: list[int], seed: int) -> tuple[Tensor, Tensor, float]:
    """The weights before and after, in one row, and the loss in eval mode."""
    module, task = made(animal)
    module.double().train()
    batch = {n: c.double() if c.is_floating_point() else c for n, c in data().items()}
    pieces = {name: column.split(cut) for name, column in batch.items()}
    parts = [{name: of_column[i] for name, of_column in pieces.items()} for i in range(len(cut))]
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = _row(parameters)
    Generators().seed(seed)
    for _ in range(STEPS):
        weights: dict[str, float] = {}
        for part in parts:
            for term, weight in _by_term(task.loss_weight(part)).items():
                weights[term] = weights.get(term, 0.0) + weight
        module.zero_grad()
        for part in parts:
            sums = _by_term(task.loss_sum(module, part))
            loss = sum(
                getattr(task, "coefficients", {}).get(t, 1.0) * sums[t] / w
                for t, w in weights.items()
            )
            loss.backward()
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p -= RATE * p.grad
    module.eval()
    with torch.no_grad():
        sums = _by_term(task.loss_sum(module, batch))
    return start, _row(parameters), sum(float(value) for value in sums.values())


def made(animal: Animal) -> tuple[nn.Module, Any]:
    """Model and task, the same weights each time."""
    Generators().seed(7)
    return animal.model(), animal.task()


def _row(parameters: list[nn.Parameter]) -> Tensor:
    flat = [torch.view_as_real(p) if p.is_complex() else p for p in parameters]
    return torch.cat([p.detach().flatten().clone() for p in flat])


def _by_term(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"loss": value}


def layers(*inner: nn.Module, width: int = 8, inputs: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), *inner, nn.Linear(width, CLASSES))


class Lambda(nn.Module):
    """(samples, 8) -> (samples, 8): `function(self, x)`, in training only where `training`."""

    def __init__(
        self, function: Callable[[Any, Tensor], Tensor], training: bool = False, **buffers: Tensor
    ) -> None:
        super().__init__()
        self.function = function
        self.only_in_training = training
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x) if self.training or not self.only_in_training else x


def inside(
    function: Callable[[Any, Tensor], Tensor], training: bool = False, **buffers: Tensor
) -> Callable[[], nn.Module]:
    """A small network with `function` in its middle."""
    return lambda: layers(
        nn.Tanh(), Lambda(function, training, **{n: b.clone() for n, b in buffers.items()})
    )
