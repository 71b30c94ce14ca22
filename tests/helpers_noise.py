"""A linear regression whose gradient noise is known: trace(S) = 131.2, |G|^2 = 0.166, noise scale
790 samples.

x ~ N(0, diag(L)), y = x w + s e. At weights w + d the gradient of a sample, x (x d - s e), has the
mean G = L d, and trace(S) = (d L d + s^2) trace(L) + |G|^2 (Isserlis). The loss is half the squared
error.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from tests.helpers import Array
from train.comparison.critical_batch import Averages

VARIANCES = np.linspace(0.1, 1.9, 200)
SIGNAL = 0.166  # |G|^2
NOISE = 131.2  # trace(S)
TRUTH = NOISE / SIGNAL
DISPLACEMENT = np.full(200, np.sqrt(SIGNAL / (VARIANCES**2).sum()))
SIGMA = np.sqrt((NOISE - SIGNAL) / VARIANCES.sum() - (DISPLACEMENT**2 * VARIANCES).sum())


def draw(random: np.random.Generator, size: int) -> tuple[Array, Array]:
    """(inputs, targets) with w = 0."""
    inputs = random.normal(size=(size, 200)) * np.sqrt(VARIANCES)
    return inputs, SIGMA * random.normal(size=(size, 1))


def gaussian(size: int, seed: int = 0) -> Dataset:
    inputs, targets = draw(np.random.default_rng(seed), size)
    return Dataset.from_dict(
        {"inputs": inputs.astype(np.float32), "targets": targets.astype(np.float32)}
    )


class Displaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(DISPLACEMENT.reshape(-1, 1), dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def split(random: np.random.Generator, kind: str) -> Array:
    """Samples of each micro-batch of one step, 64 together or about as many."""
    return np.full(8, 8) if kind == "equal" else random.integers(1, 32, 8)


def simulate(seed: int, steps: int, kind: str, averages: Sequence["Averages | Naive"]) -> None:
    """Tell `averages` of so many steps at fixed weights."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        sizes = split(random, kind)
        samples = int(sizes.sum())
        inputs, targets = draw(random, samples)
        gradients = inputs * (inputs @ DISPLACEMENT[:, None] - targets)
        parts = np.add.reduceat(gradients, np.cumsum(sizes) - sizes) / samples  # h_j
        whole = float((parts.sum(axis=0) ** 2).sum())
        for each in averages:
            if isinstance(each, Naive):
                each.see(parts, whole, sizes)
            else:
                each.add(
                    float((parts**2).sum(axis=1) @ (samples / sizes)), whole, len(sizes), samples
                )


class Naive:
    """The estimators that one finds: two batch sizes, the small one taken as N / K."""

    def __init__(self, ratio_of_each_step: bool) -> None:
        self._ratio_of_each_step = ratio_of_each_step
        self._noise: list[float] = []
        self._signal: list[float] = []

    def see(self, parts: Array, whole: float, sizes: Array) -> None:
        large, small = sizes.sum(), sizes.sum() / len(sizes)
        of_parts = float((((parts * large) / sizes[:, None]) ** 2).sum(axis=1).mean())
        self._signal.append((large * whole - small * of_parts) / (large - small))
        self._noise.append((of_parts - whole) / (1 / small - 1 / large))

    def noise_scale(self) -> float:
        noise, signal = np.array(self._noise), np.array(self._signal)
        return float(
            (noise / signal).mean() if self._ratio_of_each_step else noise.mean() / signal.mean()
        )
