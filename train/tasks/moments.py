"""What a spread is made of, in a form that can be joined: over micro-batches and ranks, at any
mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of each column of some numbers: how many, their mean, and the sum of their squared distances
    from it.

    A task gives it in the place of (sum, weight); the metric is then the variance, its mean over
    the columns. A sum of squares would lose it where the mean is large: at a mean of 1e6 and a
    deviation of 1, 13 digits of 16.
    """

    count: Tensor  # all four: (columns,), float64
    start: Tensor  # one of the numbers
    mean: Tensor  # counted from `start`: a large mean would leave it few digits
    squares: Tensor

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
        apart = (other.start - self.start) + (other.mean - self.mean)
        return Moments(
            count=count,
            start=self.start,
            mean=self.mean + apart * (other.count / count),
            squares=self.squares
            + other.squares
            + apart.square() * (self.count * other.count / count),
        )

    def numbers(self) -> list[list[float]]:
        """For a message to the other ranks."""
        return torch.stack([self.count, self.start, self.mean, self.squares]).tolist()

    @classmethod
    def read(cls, numbers: Sequence[Sequence[float]]) -> "Moments":
        return cls(*torch.tensor(numbers, dtype=torch.float64))

    def value(self) -> float:
        """The variance, its mean over the columns."""
        return float(self.squares.sum() / self.count.sum())
