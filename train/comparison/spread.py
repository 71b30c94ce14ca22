"""One number over several runs. Pure."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    values: tuple[float, ...]
    """One of each run that has the number."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; None for one run, and where a value is not finite."""
        if len(self.values) < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)  # over n - 1: runs are a sample of seeds


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Over the values that are not None; None where all are."""
    # 0.0 is a measurement: only None is absent.
    measured = tuple(value for value in values if value is not None)
    if not measured:
        return None
    return Spread(measured)
