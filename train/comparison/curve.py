"""A metric over the samples seen. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from train.comparison.columns import Numbers

Places = NDArray[np.int64]


class Curve(Mapping[int, float]):
    """{samples seen: value}, in the order of the rows; where a restart wrote a row again, the last
    one counts.
    """

    def __init__(self, samples: Places, values: Numbers) -> None:
        if (np.diff(samples) <= 0).any():
            last = dict(zip(samples.tolist(), values.tolist(), strict=True))
            samples, values = np.array(list(last), np.int64), np.array(list(last.values()))
        self.samples = samples
        self.heights = values

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        return iter(self.samples.tolist())

    def __getitem__(self, samples: int) -> float:
        place = int(np.searchsorted(self.samples, samples, sorter=self._order))
        if place == len(self) or self.samples[self._order[place]] != samples:
            raise KeyError(samples)
        return float(self.heights[self._order[place]])

    def at(self, places: Places) -> Numbers:
        """Its values there; it has one at each of them."""
        return self.heights[self._order[np.searchsorted(self.samples, places, sorter=self._order)]]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """Ascending. A picture asks a curve for each of its places: none may look at
        all of them.
        """
        return np.argsort(self.samples, kind="stable")


def common(curves: Sequence[Curve]) -> Places:
    """Samples seen at which all of them have a value; in order."""
    if not curves:
        return np.empty(0, np.int64)
    return reduce(
        np.intersect1d, [curve.samples for curve in curves[1:]], np.sort(curves[0].samples)
    )
