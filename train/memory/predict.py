"""The peak of a step for any micro-batch, from two recorded ones.

Live bytes after operation i of a step are a[i] + b[i] * m for a micro-batch of m samples, so the
peak is the largest of many lines: piecewise linear and convex. A line through two peaks is not
that: it was 34 % too low for GPT-2 at 16 samples, where another operation is the largest one than
at 1 and 2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.memory.traced_step import Recorded
from train.memory.tracer import KINDS

Array = NDArray[Any]

FITTED = (2, 3)
"""Samples of the two micro-batches that are fitted."""

NEAR = 0.001
"""Relative: rounding to whole blocks."""


class OtherOperations(ValueError):
    """The steps of two micro-batches are not made of the same operations: nothing can be fitted."""


@dataclass(frozen=True)
class Moment:
    """An operation that is the largest one of its step for some micro-batch: bytes of each kind."""

    operation: str
    fixed: Mapping[str, float]
    per_sample: Mapping[str, float]

    def at(self, samples: int) -> dict[str, int]:
        return {
            kind: round(size + samples * self.per_sample[kind]) for kind, size in self.fixed.items()
        }


class NotTraced(KeyError):
    """A size of which nothing can be said."""


@dataclass(frozen=True)
class Peaks:
    """Of a step, by the size of its micro-batches: as it was traced, else the largest of `moments`,
    if any.
    """

    moments: Sequence[Moment] = ()
    traced: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def anatomy(self, samples: int) -> dict[str, int]:
        """{kind: bytes} at the moment of the peak. Raises NotTraced."""
        if samples in self.traced:
            return dict(self.traced[samples])
        if not self.moments:
            raise NotTraced(samples)
        return max(
            (moment.at(samples) for moment in self.moments), key=lambda kinds: sum(kinds.values())
        )

    def at(self, samples: int) -> int:
        """Bytes. Raises NotTraced."""
        return sum(self.anatomy(samples).values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Peaks":
        traced = {int(samples): kinds for samples, kinds in value["traced"].items()}
        return cls([Moment(**moment) for moment in value["moments"]], traced)


def peaks_of(
    record: Callable[[int], Mapping[int, Recorded]], sizes: Sequence[int]
) -> dict[int, Peaks]:
    """{micro-batches in a step, 1 or 2: its peaks}, from what `record` gives for a micro-batch of
    some size.

    Two traces are fitted, and the fit is held against a third one, of the largest of `sizes`. Where
    that is another, since what is computed depends on the size (a loss in pieces, a branch), each
    of `sizes` is traced. So is a single sample in any case, of which a step is often made of other
    operations.
    """
    traced = {size: record(size) for size in {min(sizes), max(sizes), *FITTED}}
    fitted: dict[int, Peaks] = {}
    try:
        first, second = (traced[size] for size in FITTED)
        fitted = {steps: fit(first[steps], second[steps]) for steps in first}
        largest = traced[max(sizes)]
        if any(
            abs(fitted[steps].at(each.samples) - each.peak) > NEAR * each.peak
            for steps, each in largest.items()
        ):
            fitted = {}
    except OtherOperations:
        pass
    if not fitted:
        traced |= {size: record(size) for size in sizes if size not in traced}
    found = {}
    for steps in (1, 2):
        known = {size: of[steps].anatomy() for size, of in traced.items()}
        found[steps] = Peaks(fitted[steps].moments if fitted else (), known)
    return found


def fit(first: Recorded, second: Recorded) -> Peaks:
    """Raises OtherOperations."""
    if list(first.operations) != list(second.operations):
        raise OtherOperations(
            f"a step of {first.samples} samples has {len(first.operations)} operations, one of "
            f"{second.samples} has {len(second.operations)}, or others"
        )
    low, high = np.array(first.live, dtype=float), np.array(second.live, dtype=float)
    per_sample = (high - low) / (second.samples - first.samples)
    fixed = low - first.samples * per_sample
    moments = []
    for i in _upper(fixed.sum(1), per_sample.sum(1)):
        of_kinds = [dict(zip(KINDS, row[i].tolist(), strict=True)) for row in (fixed, per_sample)]
        moments.append(Moment(first.operations[i], *of_kinds))
    return Peaks(moments)


def _upper(fixed: Array, slope: Array) -> list[int]:
    """The lines fixed + slope * m of which each is the highest one at some m of 1 or more."""
    chosen: list[int] = []
    at = 1.0
    best = int(np.argmax(fixed + slope * at))
    while True:
        chosen.append(best)
        steeper = slope > slope[best]
        if not steeper.any():
            return chosen
        # Where each of the steeper ones passes it; of those that do first, the steepest.
        gap = (fixed[best] + slope[best] * at) - (fixed + slope * at)
        ahead = np.where(steeper, gap / np.where(steeper, slope - slope[best], 1.0), np.inf)
        following = int(np.lexsort((-slope, ahead))[0])
        at += max(0.0, float(ahead[following]))
        best = following
