"""Models and tasks whose gradient does not depend on how a batch is cut, however odd they look."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
from tests.exactness.zoo.inexact import Attention, head_of_zeros, plain
from train.batch.window import Batch


class FrozenNorm(nn.Module):
    """Its BatchNorm stays in eval mode, as one freezes it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layers = nn.BatchNorm1d(WIDTH), layers(nn.Tanh())

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(self.norm(inputs))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8, padding_idx=0), nn.Linear(8, CLASSES)
        self.rnn = kind(8, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


class Masked(nn.Module):
    """Attention that sees no padding, causal, with a cache of positions that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, CLASSES)
        self.table: dict[int, Tensor] = {}
        self.register_buffer("positions", torch.zeros(0, 8), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if len(self.positions) < length:
            self.positions = torch.arange(length)[:, None] * torch.linspace(0, 1, 8).to(
                self.embed.weight
            )
        self.table[length] = self.positions[:length].sin()
        seen = tokens != 0
        x = self.embed(tokens) + self.table[length]
        mixed = F.scaled_dot_product_attention(x, x, x, attn_mask=seen[:, None, :])
        return self.head((mixed * seen[..., None]).sum(1) / seen.sum(1, keepdim=True))


class Tied(nn.Module):
    """Predicts the class of each token with the transposed embedding, at the places that count."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens)))


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.polar(torch.ones(WIDTH), torch.linspace(0, 1, WIDTH)))
        self.layers = layers()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(torch.view_as_real(inputs * self.weight)[..., 0])


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.block, self.head = (
            nn.Linear(WIDTH, 8),
            nn.Linear(8, 8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(
            checkpoint(self.block, self.first(inputs), use_reentrant=self.reentrant).tanh()
        )


class Images(Labels):
    column = "images"


class ClassWeights(Labels):
    """In float32, and counted so."""

    weight = torch.tensor([0.1, 1.0, 7.3])

    def loss_weight(self, batch: Batch) -> float:
        return float(self.weight[batch["labels"]].sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        logits = model(batch["inputs"])
        return F.cross_entropy(
            logits, batch["labels"], weight=self.weight.to(logits), reduction="sum"
        )


class SampleWeights(Labels):
    def loss_weight(self, batch: Batch) -> float:
        return float(batch["sample_weight"].sum()) * 2.5

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        losses = F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")
        return 2.5 * (batch["sample_weight"] * losses).sum()


class Smoothed(Labels):
    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(
            model(batch["inputs"]), batch["labels"], reduction="sum", label_smoothing=0.1
        )


class PerToken(Labels):
    """Some samples have no label that counts."""

    def loss_weight(self, batch: Batch) -> float:
        return float((batch["token_labels"] != -100).sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(
            model(batch["tokens"]).flatten(0, 1), batch["token_labels"].flatten(), reduction="sum"
        )


class TwoTerms(Labels):
    coefficients: Mapping[str, float] = {"penalty": 0.25}

    def loss_weight(self, batch: Batch) -> dict[str, float]:
        return {
            "labels": float((batch["labels"] != 2).sum()),
            "penalty": float(batch["targets"].numel()),
        }

    def loss_sum(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch["inputs"])
        counted = F.cross_entropy(logits, batch["labels"], reduction="sum", ignore_index=2)
        return {"labels": counted, "penalty": logits.square().sum()}


class Squares(Labels):
    shift, scale = 0.0, 1.0

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return self.scale * (model(batch["inputs"]) - batch["targets"] - self.shift).square().sum()


class FarTargets(Squares):
    shift = 1e6


class Huge(Squares):
    scale = 1e12


class Tiny(Squares):
    scale = 1e-12


class Signed(Labels):
    """A policy gradient: losses of both signs, whose sum is near zero."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        reward = torch.where(batch["sample_id"] % 2 == 0, 1.0, -1.0).to(batch["targets"])
        return (
            reward * F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="none")
        ).sum()


class Confident(Labels):
    """Large logits: a softmax that is sure, where float32 cancels."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(300 * model(batch["inputs"]), batch["labels"], reduction="sum")


class ByPixel(Labels):
    def loss_weight(self, batch: Batch) -> float:
        return float(sum(image.numel() for image in batch["images"]))

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return sum(out.square().sum() for out in model(batch["images"])) * 1.0


class InfoNce(Labels):
    """Contrastive over the views of one sample, none of another."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        views = torch.stack([batch["inputs"] * scale for scale in (1.0, 0.5, -1.0)], 1)
        return F.cross_entropy(
            model(views.flatten(0, 1)).unflatten(0, (-1, 3)).sum(2),
            batch["labels"],
            reduction="sum",
        )


class OwnPenalty(Labels):
    """The slope of each sample's own loss."""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        inputs = batch["inputs"].clone().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(model(inputs), batch["labels"], reduction="sum")
            (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return loss + slope.square().sum()


class Counter(nn.Module):
    """Counts calls and samples, and nobody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("samples", torch.tensor(0))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.samples += len(x)
        self.seen.append(len(x))
        return x


class KeyedNoise(nn.Module):
    """Noise that is the same for a sample in any micro-batch; a generator of its own, set for each
    call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.generator.manual_seed(5)
        return x + 0.1 * torch.randn(x.shape[1], generator=self.generator, dtype=x.dtype)


class SaysSo(nn.Module):
    """Draws a key for each call, and says that its numbers are the same however a batch is cut."""

    split_invariant_draws = True

    def forward(self, x: Tensor) -> Tensor:
        torch.randint(2**31, ())
        return x * (1 + 0.1 * torch.sin(1e3 * x.detach()))


def watched(module: Any, x: Tensor) -> Tensor:
    """A running average that only a log reads."""
    if module.training:
        module.norm.mul_(0.9).add_(0.1 * x.detach().norm(dim=1).mean())
    return x


def weight_normed() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 8)), nn.Tanh(), nn.Linear(8, CLASSES)
    )


class FrozenSpectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 8)),
            nn.Linear(8, CLASSES),
        )

    def train(self, mode: bool = True) -> "FrozenSpectral":
        super().train(mode)
        self.first.eval()
        self.first.parametrizations.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))


def convolutions(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *inner, nn.Flatten(), nn.Linear(36, CLASSES))


class HalfInside(nn.Module):
    """Widens to float32 inside whatever it is given, as the norm of a Llama does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layers = nn.RMSNorm(WIDTH), layers(nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        norm = inputs.float() / inputs.float().square().mean(-1, keepdim=True).sqrt()
        return self.layers(norm.to(inputs.dtype))


def _animal(name: str, model: Any, task: Any = Labels) -> Animal:
    return Animal(name=name, exact=True, model=model, task=task)


EXACT = [
    _animal("plain", plain),
    _animal("head of zeros", head_of_zeros(plain)),
    _animal("layer norm", lambda: layers(nn.LayerNorm(8))),
    _animal("RMS norm", lambda: layers(nn.RMSNorm(8))),
    _animal("group norm", lambda: convolutions(nn.GroupNorm(2, 4), nn.ReLU()), Images),
    _animal("instance norm", lambda: convolutions(nn.InstanceNorm2d(4), nn.ReLU()), Images),
    _animal("convolutions", lambda: convolutions(nn.ReLU()), Images),
    _animal("frozen batch norm", FrozenNorm),
    _animal("dropout of 0", lambda: layers(nn.Dropout(0.0))),
    _animal("attention with dropout of 0", lambda: Attention(0.0), Words),
    _animal("GRU", lambda: Recurrent(nn.GRU), Words),
    _animal("LSTM", lambda: Recurrent(nn.LSTM), Words),
    _animal("masked attention, growing caches", Masked, Words),
    _animal("tied weights, tokens that count", Tied, PerToken),
    _animal("complex weights", Complex),
    _animal("checkpointing", lambda: Checkpointed(False)),
    _animal("reentrant checkpointing", lambda: Checkpointed(True)),
    _animal("weight norm", weight_normed),
    _animal("spectral norm in eval mode", FrozenSpectral),
    _animal("counters nobody reads", lambda: layers(Counter())),
    _animal("noise with a key of its own", lambda: layers(KeyedNoise())),
    _animal("draws that say that they are invariant", lambda: layers(SaysSo())),
    _animal("an average only a log reads", inside(watched, norm=torch.tensor(1.0))),
    _animal("class weights in float32", plain, ClassWeights),
    _animal("sample weights in float32", plain, SampleWeights),
    _animal("label smoothing", plain, Smoothed),
    _animal("two terms with coefficients", plain, TwoTerms),
    _animal("squares", plain, Squares),
    _animal("targets at 1e6", plain, FarTargets),
    _animal("a huge loss", plain, Huge),
    _animal("a tiny loss", plain, Tiny),
    _animal("losses of both signs", plain, Signed),
    _animal("a confident softmax", plain, Confident),
    _animal("sums of sums", lambda: nn.Conv2d(2, 2, 3), ByPixel),
    _animal("views of one sample", plain, InfoNce),
    _animal("slope of each sample", plain, OwnPenalty),
    _animal("float32 inside", HalfInside),
    _animal("ReZero", inside(lambda m, x: x + 0.0 * torch.tanh(x))),
    _animal("best expert per sample", inside(lambda m, x: torch.where(x[:, :1] > 0, x, 2 * x))),
    _animal(
        "a buffer that counts samples",
        inside(lambda m, x: (m.n.add_(len(x)), x)[1], n=torch.tensor(0.0)),
    ),
    _animal("Lambda in eval mode", lambda: layers(Lambda(lambda m, x: x, training=True))),
]
