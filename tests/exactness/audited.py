"""Models that a test of the audit trains, named in configs by their dotted path, and what it reads
of such a run.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from tests.helpers import Array, Trace, points, record, rows
from train import metric_names as names
from train.batch import sample_ids
from train.run import Run


class Gated(nn.Module):
    """An MLP; `opens` changes what it does with a micro-batch from some call or some value on."""

    def __init__(self, opens: int = 10**9, kind: str = "none") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.opens, self.kind = opens, kind
        self.calls = 0
        self.queue: list[Tensor] = []
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.layers(inputs)
        if self.training:
            self.calls += 1
            x = getattr(self, f"_{self.kind}")(x)
        return self.head(x)

    def _none(self, x: Tensor) -> Tensor:
        return x

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.calls > self.opens else x

    def _queued(self, x: Tensor) -> Tensor:
        """The mean of the last micro-batches counts once there are enough of them."""
        self.queue.append(x.detach().mean(0))
        if len(self.queue) <= self.opens:
            return x
        self.queue.pop(0)
        return x + torch.stack(self.queue).mean(0)

    def _averaged(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean if self.calls > self.opens else x

    def _dropped(self, x: Tensor) -> Tensor:
        return x * (torch.rand(1) > 0.5) if self.calls > self.opens else x


def audits(folder: Path, name: str = "run") -> dict[int, dict[str, Any]]:
    """{step: the row of its audit}"""
    return {row[names.GLOBAL_STEP]: row for row in rows(folder, names.SPLIT_ERROR, name)}


def other_rows(folder: Path, name: str = "run") -> list[dict[str, Any]]:
    """All that is measured of the training: without times and what the machine holds."""
    kept = []
    for row in rows(folder, names.LEARNING_RATE, name):
        kept.append(
            {key: value for key, value in row.items() if key.startswith(("train/", "batch/"))}
        )
    return kept


def trained(arguments: list[str]) -> tuple[Array, list[list[int]]]:
    trace = record(arguments)
    return trace.weights[-1], trace.sizes


class Flipping(Gated):
    """Rank `wrong` gets a gradient of its head in which bit `bit` of one number is another one,
    once it is armed.

    `times`: in so many backward passes.
    """

    def __init__(self, wrong: int = 0, bit: int = 30, times: int = 10**9) -> None:
        super().__init__()
        self.is_armed = False
        if int(os.environ.get("RANK", "0")) == wrong:
            flipped = 0

            def flip(gradient: Tensor) -> Tensor:
                nonlocal flipped
                flipped += self.is_armed
                if not 0 < flipped <= times:
                    return gradient
                bits = gradient.clone().view(torch.int32)
                bits[0, 0] ^= 1 << bit
                return bits.view(torch.float32)

            self.head.weight.register_hook(flip)


SLOW_SECONDS = 0.1


class SlowForOne(Gated):
    """Slow and large where it gets one sample: steps take two at a time, audits one."""

    is_armed = False

    def _none(self, x: Tensor) -> Tensor:
        if self.is_armed and len(x) == 1:
            time.sleep(SLOW_SECONDS)
            large = torch.ones(2**26)  # 256 MiB for a moment
            x = x + 0 * large[0]
        return x


class AtThreshold(Gated):
    """One sample of the first step lies where a ReLU begins: rounding, which batches of another
    size do otherwise, decides whether it counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.full((), 10.0))

    def _none(self, x: Tensor) -> Tensor:
        rounding = torch.finfo(x.dtype).eps / 2 * (1 if len(x) % 2 else -1)
        return x + (x[:, :1] - self.threshold + rounding).relu()


def trained_at_threshold(arguments: list[str]) -> None:
    def place(run: Run, _: Trace) -> None:
        (first,) = sample_ids(37, 0, 0, 0, 1)
        inputs = torch.from_numpy(points(np.random.default_rng(0), 37, 6))[[first]]
        with torch.no_grad():
            run.learner.module.threshold.copy_(run.learner.module.layers(inputs)[0, 0])

    record(arguments, prepare=place)


class Known(nn.Module):
    """Always the same weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def known(size: int = 37) -> Dataset:
    inputs = torch.from_numpy(points(np.random.default_rng(0), size, 6))
    with torch.no_grad():
        targets = Known().double()(inputs.double()).float()
    return Dataset.from_dict({"inputs": inputs.numpy(), "targets": targets.numpy()})


class WrongForThree(torch.autograd.Function):
    """A kernel that is wrong in float32 where it is given three samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_armed: bool) -> Tensor:
        ctx.is_wrong = is_armed and len(x) == 3 and x.dtype == torch.float32
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * (1.01 if ctx.is_wrong else 1.0), None


class WithKernel(Gated):
    is_armed = False

    def _none(self, x: Tensor) -> Tensor:
        found: Tensor = WrongForThree.apply(x, self.is_armed)  # type: ignore[no-untyped-call]
        return found


class NarrowForEach(Gated):
    """Couples samples a little, and computes one number of each in float32: where there is one,
    none is seen.
    """

    is_armed = False

    def _none(self, x: Tensor) -> Tensor:
        if not self.is_armed:
            return x
        return x - 1e-8 * x.mean(0) + 0 * x.sum(1).float().to(x.dtype).unsqueeze(1)


def trained_armed(arguments: list[str]) -> None:
    """What a rank computes before the first step is right."""

    def arm(run: Run, _: Trace) -> None:
        run.learner.module.is_armed = True

    record(arguments, prepare=arm)


def trained_sharded(arguments: list[str]) -> None:
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    record(arguments)


def both_sharded(with_: list[str], without: list[str]) -> list[Array]:
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    return [record(arguments).weights[-1] for arguments in (with_, without)]


class Unwritable(Gated):
    """Holds what nobody can write to."""

    shift = np.zeros(8, dtype=np.float32)
    shift.setflags(write=False)
    wide = torch.zeros(1).expand(8)


class _Sealed(type):
    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{name} is sealed")


class Sealed(Gated, metaclass=_Sealed):
    """A class with an attribute that nobody can put back."""

    factor = 1.0


CALLS = {"number": 0}


class Elsewhere(Gated):
    """Counts its calls where neither buffers nor attributes are; the count changes nothing, or
    centres from 40 on.
    """

    total = 0

    def __init__(self, couples: bool = False) -> None:
        super().__init__()
        self.couples = couples
        count = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return x

        self.counted = counted

    def _none(self, x: Tensor) -> Tensor:
        CALLS["number"] += 1
        type(self).total += 1
        x = self.counted(x)
        return x - x.mean(0) if self.couples and CALLS["number"] > 150 else x


def counted_elsewhere(arguments: list[str]) -> tuple[int, int, Any]:
    CALLS["number"] = 0
    Elsewhere.total = 0
    found: list[Any] = []
    record(arguments, prepare=lambda run, _: found.append(run.learner.module.counted))
    return CALLS["number"], Elsewhere.total, found[0].__closure__[0].cell_contents
