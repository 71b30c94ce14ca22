"""Models and tasks that are exact at first: what depends on the cut, or does not, opens in the
course of a run.

Each is made by `opens`: after so many calls in training. The trial before the first step has some
tens of them.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.exactness.zoo.animals import Animal, Labels, layers
from train.batch.window import Batch

OPENS = 250
"""Calls: step 60 or so of a run of four micro-batches a step."""

COUNTED = {"calls": 0}

Function = Callable[[Any, Tensor], Tensor]


def centred(_: Any, x: Tensor) -> Tensor:
    return x - 0.5 * x.mean(0)


def scaled(_: Any, x: Tensor) -> Tensor:
    return x / x.detach().abs().max()


def paired(_: Any, x: Tensor) -> Tensor:
    return x + 0.5 * x.roll(1, 0)


def of_each(_: Any, x: Tensor) -> Tensor:
    return x / (1 + x.norm(dim=1, keepdim=True))


class ByAttribute(nn.Module):
    """A plain counter of calls."""

    def __init__(self, function: Function, opens: int) -> None:
        super().__init__()
        self.function, self.opens, self.calls = function, opens, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.function(self, x) if self.calls > self.opens else x


class ByBuffer(ByAttribute):
    def __init__(self, function: Function, opens: int) -> None:
        super().__init__(function, opens)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.training
        return self.function(self, x) if int(self.count) > self.opens else x


class ByGlobal(ByAttribute):
    def __init__(self, function: Function, opens: int) -> None:
        super().__init__(function, opens)
        COUNTED["calls"] = 0

    def forward(self, x: Tensor) -> Tensor:
        COUNTED["calls"] += self.training
        return self.function(self, x) if COUNTED["calls"] > self.opens else x


class Annealed(ByAttribute):
    """The strength grows from 0, from call `opens` on, for 100 calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        share = min(1.0, max(0, self.calls - self.opens) / 100)
        return x + share * (self.function(self, x) - x)


class Queue(nn.Module):
    """The means of the last micro-batches, which count once there are `opens` of them."""

    def __init__(self, opens: int, is_read: bool = True) -> None:
        super().__init__()
        self.opens, self.is_read = opens, is_read
        self.past: deque[Tensor] = deque(maxlen=max(1, opens))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.past.append(x.detach().mean(0))
        if not self.is_read or len(self.past) < self.opens:
            return x
        return x - torch.stack(list(self.past)).mean(0)


class Average(ByAttribute):
    """A running mean, which is taken off from call `opens` on."""

    def __init__(self, opens: int) -> None:
        super().__init__(centred, opens)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean if self.calls > self.opens else x


class Grown(nn.Module):
    """The gate is a weight, and opens once it has grown."""

    def __init__(self, function: Function, opens: int) -> None:
        super().__init__()
        self.function = function
        self.gate = nn.Parameter(torch.tensor(0.0 if opens else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        drawn = x * (1 + self.gate)
        return drawn + F.relu(self.gate.abs() - 0.02) * self.function(self, x)


class Depth(ByAttribute):
    """Stochastic depth that begins at call `opens`: one number for the micro-batch."""

    def __init__(self, opens: int) -> None:
        super().__init__(centred, opens)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls > self.opens and torch.rand(()) < 0.2:
            return x
        return x + torch.tanh(x)


class LateTask(Labels):
    """A balance loss, from call `opens` on."""

    def __init__(self, opens: int) -> None:
        self.opens, self.calls = opens, 0

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits = model(batch["inputs"])
        self.calls += model.training
        loss = F.cross_entropy(logits, batch["labels"], reduction="sum")
        if self.calls <= self.opens:
            return loss
        return loss + 0.1 * len(logits) * logits.softmax(1).mean(0).square().sum()


Made = Callable[[int], nn.Module]


def _late(
    name: str, exact: bool, model: Made, task: Callable[[int], Any] = lambda opens: Labels()
) -> Any:
    def animal(opens: int) -> Animal:
        return Animal(name=name, exact=exact, model=lambda: model(opens), task=lambda: task(opens))

    return animal


def _inside(kind: Any, *arguments: Any) -> Made:
    return lambda opens: layers(nn.Tanh(), kind(*arguments, opens))


LATE = [
    _late("centred, by an attribute", False, _inside(ByAttribute, centred)),
    _late("scaled by the largest, by an attribute", False, _inside(ByAttribute, scaled)),
    _late("neighbours, by an attribute", False, _inside(ByAttribute, paired)),
    _late("centred, by a buffer", False, _inside(ByBuffer, centred)),
    _late("centred, by a global", False, _inside(ByGlobal, centred)),
    _late("centred, annealed", False, _inside(Annealed, centred)),
    _late("a queue that fills", False, _inside(Queue)),
    _late("a running mean that begins to count", False, _inside(Average)),
    _late("centred, by a weight that grows", False, _inside(Grown, centred)),
    _late("a balance loss that begins", False, lambda opens: layers(nn.Tanh()), LateTask),
    _late("stochastic depth that begins", False, _inside(Depth)),
    _late("of each sample, by an attribute", True, _inside(ByAttribute, of_each)),
    _late("of each sample, by a buffer", True, _inside(ByBuffer, of_each)),
    _late("of each sample, by a weight that grows", True, _inside(Grown, of_each)),
    _late(
        "a queue that nobody reads",
        True,
        lambda opens: layers(nn.Tanh(), Queue(opens, is_read=False)),
    ),
]
"""Each takes `opens`, and gives an animal."""
