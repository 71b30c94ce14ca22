"""Moments of a variance that can be merged over micro-batches and ranks, whatever the mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each column of some numbers.

    A task returns it in the place of (sum, weight); the metric is then the variance, averaged over
    the columns. A plain sum of squares would lose its digits where the mean is large: at a mean of
    1e6 and a deviation of 1, 13 of 16. All four tensors: (columns,), float64.
    """

    count: Tensor
    start: Tensor  # one of the numbers
    mean: Tensor  # minus `start`: else a large mean would leave it few digits
    squares: Tensor  # sum of squared deviations from the mean

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """`values`: (samples, columns), at least one sample."""
        start = values[0].double()
        shifted = values.double() - start  # exactly 0 where all are the same
        mean = shifted.mean(0)
        return cls(
            count=torch.full_like(mean, len(values)),
            start=start,
            mean=mean,
            squares=(shifted - mean).square().sum(0),
        )

    def joined(self, other: "Moments") -> "Moments":
        """Of the numbers of both (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        difference = (other.start - self.start) + (other.mean - self.mean)
        between = difference.square() * (self.count * other.count / count)
        return Moments(
            count=count,
            start=self.start,
            mean=self.mean + difference * (other.count / count),
            squares=self.squares + other.squares + between,
        )

    def numbers(self) -> list[list[float]]:
        """For a message to other ranks, which `read` it."""
        return torch.stack([self.count, self.start, self.mean, self.squares]).tolist()

    @classmethod
    def read(cls, numbers: Sequence[Sequence[float]]) -> "Moments":
        return cls(*torch.tensor(numbers, dtype=torch.float64))

    def value(self) -> float:
        """The variance, averaged over the columns."""
        return float(self.squares.sum() / self.count.sum())
