"""A metric over the samples seen. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from train.comparison.columns import Numbers

Samples = NDArray[np.int64]
"""Numbers of samples seen."""


class Curve(Mapping[int, float]):
    """{samples seen: value}, in the order of the rows.

    Where a restart wrote a row again, the last one counts.
    """

    def __init__(self, samples: Samples, heights: Numbers) -> None:
        # Point by point only where a restart wrote rows again.
        if (np.diff(samples) <= 0).any():
            # A dictionary keeps the place of the first, and the value of the last.
            last = dict(zip(samples.tolist(), heights.tolist(), strict=True))
            samples = np.array(list(last), np.int64)
            heights = np.array(list(last.values()))
        self.samples = samples
        self.heights = heights

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples.tolist())

    def __getitem__(self, samples: int) -> float:
        rank = int(np.searchsorted(self.samples, samples, sorter=self._order))
        # searchsorted gives where it would stand: it need not be there.
        if rank == len(self) or self.samples[self._order[rank]] != samples:
            raise KeyError(samples)
        return float(self.heights[self._order[rank]])

    def at(self, samples: Samples) -> Numbers:
        """Its values there; it must have one at each of them."""
        ranks = np.searchsorted(self.samples, samples, sorter=self._order)
        return self.heights[self._order[ranks]]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """Ascending in samples seen. Sorted once: a picture looks up each point of a curve."""
        return np.argsort(self.samples, kind="stable")


def common_samples(curves: Sequence[Curve]) -> Samples:
    """Ascending: where all of them have a value."""
    if not curves:
        return np.empty(0, np.int64)
    others = [curve.samples for curve in curves[1:]]
    return reduce(np.intersect1d, others, np.sort(curves[0].samples))


@dataclass(frozen=True)
class Series:
    """Several curves, where all of them have a value."""

    samples: Samples
    """Ascending."""
    heights: Numbers
    """(samples, curves)"""

    @property
    def mean(self) -> Curve:
        return Curve(self.samples, self.heights.mean(axis=1))


def stack(curves: Sequence[Curve]) -> Series:
    """Of one curve or more."""
    samples = common_samples(curves)
    return Series(samples, np.stack([curve.at(samples) for curve in curves], axis=1))
