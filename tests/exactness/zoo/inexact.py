"""Models and tasks whose gradient depends on how a batch is cut."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.exactness.zoo.animals import (
    CLASSES,
    WIDTH,
    WORDS,
    Animal,
    Labels,
    Lambda,
    Words,
    inside,
    layers,
)
from train.batch.window import Batch


def neighbours(group: int) -> Any:
    """Samples of a group of so many side by side see their mean."""

    def mixed(_: Any, x: Tensor) -> Tensor:
        return torch.cat([part + 0.5 * part.mean(0) for part in x.split(group)])

    return mixed


def skipped(draw: Any) -> Any:
    """A block that a random number skips for the whole micro-batch."""
    return lambda module, x: x if draw() < 0.02 else x + torch.tanh(x)


def deep(draw: Any) -> Any:
    return lambda: layers(*(Lambda(skipped(draw), training=True) for _ in range(4)))


def running_mean(module: Any, x: Tensor) -> Tensor:
    if module.training:
        module.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return x - module.mean


def reassigned_mean(module: Any, x: Tensor) -> Tensor:
    if module.training:
        module.mean = 0.9 * module.mean + 0.1 * x.detach().mean(0)
    return x - module.mean


def mean_for_evaluation(module: Any, x: Tensor) -> Tensor:
    if module.training:
        module.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x
    return x - module.mean


def codebook(module: Any, x: Tensor) -> Tensor:
    nearest = torch.cdist(x, module.codes).argmin(1)
    if module.training:
        with torch.no_grad():
            hot = F.one_hot(nearest, len(module.codes)).to(x)
            count = hot.sum(0)[:, None]
            module.codes.copy_(
                torch.where(
                    count > 0,
                    0.9 * module.codes + 0.1 * hot.T @ x / count.clamp(min=1),
                    module.codes,
                )
            )
    return 0.5 * x + 0.5 * module.codes[nearest]


def queue(module: Any, x: Tensor) -> Tensor:
    seen = module.queue.clone()
    if module.training:
        module.queue.copy_(torch.cat([module.queue, x.detach()])[-len(module.queue) :])
    return x + 0.3 * torch.softmax(x @ seen.T, 1) @ seen


def annealed(module: Any, x: Tensor) -> Tensor:
    module.calls = getattr(module, "calls", 0) + 1
    return x * (1 + 0.9995**module.calls)


def annealed_buffer(module: Any, x: Tensor) -> Tensor:
    module.calls += 1
    return x * (1 + 0.999**module.calls)


GLOBAL = {"calls": 0}


def annealed_global(module: Any, x: Tensor) -> Tensor:
    GLOBAL["calls"] += 1
    return x * (1 + 0.5 * np.sin(GLOBAL["calls"]))


def slowly_by_a_global(_: Any, x: Tensor) -> Tensor:
    GLOBAL["calls"] += 1
    return x * (1 + np.exp(-1e-5 * GLOBAL["calls"]))


def attribute(module: Any, x: Tensor) -> Tensor:
    kept = getattr(module, "kept", torch.zeros(x.shape[1], dtype=x.dtype))
    module.kept = 0.5 * kept + 0.5 * x.detach().mean(0)
    return x + kept


def in_a_list(module: Any, x: Tensor) -> Tensor:
    module.__dict__.setdefault("past", []).append(float(x.detach().abs().mean()))
    return x / (1 + sum(module.past[-3:]))


def quantised(_: Any, x: Tensor) -> Tensor:
    step = x.detach().abs().max() / 8
    return x + ((x / step).round() * step - x).detach()


def clipped(_: Any, x: Tensor) -> Tensor:
    return x * (2.0 / x.norm()).clamp(max=1.0)


def first_special(_: Any, x: Tensor) -> Tensor:
    return torch.cat([2 * x[:1], x[1:]])


def last_special(_: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:-1], x[-1:] + x[:1]])


def ranks(_: Any, x: Tensor) -> Tensor:
    return x * (1 + x[:, 0].argsort().argsort()[:, None] / len(x))


def by_position(_: Any, x: Tensor) -> Tensor:
    return x + 0.1 * torch.arange(len(x))[:, None]


def normalised_gradient(module: Any, x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient / (gradient.norm() + 1e-6))
    return 1.0 * x


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, CLASSES)
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Sdpa(Attention):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)[:, None]
        return self.head(
            F.scaled_dot_product_attention(x, x, x, dropout_p=0.2 if self.training else 0.0)[
                :, 0
            ].mean(1)
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, CLASSES)
        self.rnn = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


class SeesPadding(nn.Module):
    """Texts are cut to the longest of the batch, then averaged over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        longest = int((tokens != 0).sum(1).max())
        return self.head(self.embed(tokens[:, :longest]).mean(1))


class Spectral(nn.Module):
    """Power iteration in each forward of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 8))
        self.second = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))


class Experts(nn.Module):
    """Each expert takes half of the batch at most."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = (
            nn.Linear(WIDTH, 2),
            nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2)),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        gates = self.gate(inputs).softmax(1)
        taken = torch.zeros(len(inputs), CLASSES).to(inputs)
        for i, expert in enumerate(self.experts):
            chosen = gates[:, i].topk(max(1, len(inputs) // 2)).indices
            taken = taken.index_add(0, chosen, gates[chosen, i, None] * expert(inputs[chosen]))
        return taken


class Mean(Labels):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["inputs"]), batch["labels"])


class WeightOfOne(Labels):
    def loss_weight(self, batch: Batch) -> float:
        return 1.0


class RootWeight(Labels):
    def loss_weight(self, batch: Batch) -> float:
        return float(len(batch["labels"])) ** 0.5


class Contrastive(Labels):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        embedded = F.normalize(model(batch["inputs"]), dim=1)
        return F.cross_entropy(embedded @ embedded.T, torch.arange(len(embedded)), reduction="sum")


class Balanced(Labels):
    scale = 0.01

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits = model(batch["inputs"])
        balance = self.scale * len(logits) * logits.softmax(1).mean(0).square().sum()
        return F.cross_entropy(logits, batch["labels"], reduction="sum") + balance


class HardlyBalanced(Balanced):
    scale = 0.001


class Worst(Labels):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return (
            len(batch["labels"])
            * F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none").max()
        )


class Baseline(Labels):
    """A policy gradient whose baseline is the mean of the batch."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        reward = batch["targets"][:, 0]
        return (
            (reward - reward.mean())
            * F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")
        ).sum()


class PairPenalty(Labels):
    """The gradient of the batch's mean loss by the inputs is kept small: it holds 1 / size."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        inputs = batch["inputs"].clone().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(inputs), batch["labels"])
            (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return len(inputs) * (loss + slope.norm())


class NormalisedWeights(Labels):
    """Class weights are divided by their mean over the batch."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        weight = batch["sample_weight"] / batch["sample_weight"].mean()
        return (
            weight * F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")
        ).sum()


class Mixup(Labels):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        share = random.betavariate(0.4, 0.4)
        other = batch["inputs"].flip(0)
        return F.cross_entropy(
            model(share * batch["inputs"] + (1 - share) * other), batch["labels"], reduction="sum"
        )


class Diffusion(Labels):
    """Noise, and how much of it, for each sample: the loss draws in eval mode, too."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        inputs = batch["inputs"]
        share, noise = torch.rand(len(inputs), 1).to(inputs), torch.randn_like(inputs)
        return (model(share * inputs + (1 - share) * noise) - batch["targets"]).square().sum()


class MovingScale(Labels):
    """The loss is divided by a running average of itself, which the task keeps."""

    def __init__(self) -> None:
        self.average = 1.0

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        loss = F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum")
        if model.training:
            self.average = 0.9 * self.average + 0.1 * float(loss.detach()) / len(batch["labels"])
        return loss / self.average


def head_of_zeros(inner: Any) -> Any:
    def model() -> nn.Module:
        network = inner()
        nn.init.zeros_(network[-1].weight)
        return network

    return model


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return (
            x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
            if self.training
            else x
        )


def _animal(name: str, model: Any, task: Any = Labels, smallest: int = 1) -> Animal:
    return Animal(name=name, exact=False, model=model, task=task, smallest=smallest)


def plain() -> nn.Module:
    return layers(nn.Tanh())


ZEROS = torch.zeros(8)
RANDOM = torch.linspace(-1, 1, 32).reshape(4, 8)

INEXACT = [
    _animal("batch norm", lambda: layers(nn.BatchNorm1d(8)), smallest=2),
    _animal(
        "normalised by the batch, functional", inside(lambda m, x: F.layer_norm(x.T, x.shape[:1]).T)
    ),
    _animal("dropout", lambda: layers(nn.Dropout(0.1))),
    _animal("functional dropout", inside(lambda m, x: F.dropout(x, 0.1, m.training))),
    _animal("alpha dropout", lambda: layers(nn.SELU(), nn.AlphaDropout(0.1))),
    _animal("attention dropout", lambda: Attention(0.2), Words),
    _animal("scaled dot product dropout", lambda: Sdpa(0.0), Words),
    _animal("recurrent dropout", Recurrent, Words),
    _animal("randomised ReLU", lambda: layers(nn.RReLU())),
    _animal("noise from torch", inside(lambda m, x: x + 0.1 * torch.randn_like(x), training=True)),
    _animal(
        "noise from numpy", inside(lambda m, x: x + 0.1 * float(np.random.randn()), training=True)
    ),
    _animal("noise from random", inside(lambda m, x: x * random.uniform(0.9, 1.1), training=True)),
    _animal("noise from a generator of its own", lambda: layers(OwnNoise())),
    _animal("depth, 0.02 x 4, from torch", deep(lambda: float(torch.rand(())))),
    _animal("depth, 0.02 x 4, from numpy", deep(lambda: np.random.rand())),
    _animal("depth, 0.02 x 4, from random", deep(lambda: random.random())),
    _animal(
        "depth, 0.02 x 4, from coins",
        deep(lambda: 1.0 - float(torch.bernoulli(torch.tensor(0.02)))),
    ),
    _animal("pairs", inside(neighbours(2))),
    _animal("groups of four", inside(neighbours(4))),
    _animal("first sample special", inside(first_special)),
    _animal("last sample special", inside(last_special)),
    _animal("sees its place in the batch", inside(by_position)),
    _animal("ranks in the batch", inside(ranks)),
    _animal("sorted within the batch", inside(lambda m, x: x + 0.3 * x.sort(0).values)),
    _animal("centred", inside(lambda m, x: x - x.mean(0))),
    _animal("centred under a head of zeros", head_of_zeros(inside(lambda m, x: x - x.mean(0)))),
    _animal("dropout under a head of zeros", head_of_zeros(lambda: layers(nn.Dropout(0.3)))),
    _animal("scaled by the largest of the batch", inside(lambda m, x: x / x.abs().max())),
    _animal("quantised by the largest of the batch", inside(quantised)),
    _animal("clipped by the norm of the batch", inside(clipped)),
    _animal("attention over the batch", inside(lambda m, x: x + torch.softmax(x @ x.T, 1) @ x)),
    _animal("running mean", inside(running_mean, mean=ZEROS)),
    _animal("running mean, assigned anew", inside(reassigned_mean, mean=ZEROS)),
    _animal("running mean, used in eval mode only", inside(mean_for_evaluation, mean=ZEROS)),
    _animal("codebook by moving averages", inside(codebook, codes=RANDOM)),
    _animal("queue of the last samples", inside(queue, queue=RANDOM)),
    _animal("spectral norm", Spectral),
    _animal("annealed by an attribute", inside(annealed)),
    _animal("annealed by a buffer", inside(annealed_buffer, calls=torch.tensor(0))),
    _animal("annealed by a global", inside(annealed_global)),
    _animal("annealed slowly by a global", inside(slowly_by_a_global)),
    _animal("a tensor kept in an attribute", inside(attribute)),
    _animal("a list that grows", inside(in_a_list)),
    _animal("a hook that normalises gradients", inside(normalised_gradient)),
    _animal("padding of the longest text", SeesPadding, Words),
    _animal("experts of limited capacity", Experts),
    _animal("mean for a sum", plain, Mean),
    _animal("weight of one", plain, WeightOfOne),
    _animal("weight by a root", plain, RootWeight),
    _animal("negatives in the batch", plain, Contrastive),
    _animal("balance loss", plain, Balanced),
    _animal("balance loss, a thousandth", plain, HardlyBalanced),
    _animal("largest loss of the batch", plain, Worst),
    _animal("baseline of the batch", plain, Baseline),
    _animal("gradient penalty of the mean", plain, PairPenalty),
    _animal("weights over their mean", plain, NormalisedWeights),
    _animal("mixup", plain, Mixup),
    _animal("diffusion", plain, Diffusion),
    _animal("loss over its own average", plain, MovingScale),
]
