"""The peak of a step for any micro-batch, from two recorded ones.

Live bytes after operation i of a step are a[i] + b[i] * m for a micro-batch of m samples, so the
peak is the maximum of many lines: piecewise linear and convex. A single line through two peaks is
wrong: it was 34 % too low for GPT-2 at 16 samples, where another operation has the peak than at 1
and 2 samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.memory.traced_step import RecordedStep
from train.memory.tracer import KINDS

Array = NDArray[Any]

FITTED = (2, 3)
"""Samples of the two micro-batches that are fitted."""

TOLERANCE = 0.001
"""Relative: the allocator rounds up to blocks."""


class OtherOperations(ValueError):
    """The steps of two micro-batches are not made of the same operations: nothing can be fitted."""


class NotTraced(KeyError):
    """A micro-batch whose peak is unknown."""


@dataclass(frozen=True)
class Moment:
    """An operation that has the peak of the step for some micro-batch: bytes of each kind."""

    operation: str
    fixed: Mapping[str, float]
    per_sample: Mapping[str, float]

    def at(self, samples: int) -> dict[str, int]:
        """{kind: bytes}"""
        sizes = {}
        for kind, fixed in self.fixed.items():
            sizes[kind] = round(fixed + samples * self.per_sample[kind])
        return sizes


@dataclass(frozen=True)
class Peaks:
    """The peak of a step by its micro-batch: the traced one, else the largest of `moments`."""

    moments: Sequence[Moment] = ()
    traced: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def anatomy(self, samples: int) -> dict[str, int]:
        """{kind: bytes} at the moment of the peak. Raises NotTraced."""
        if samples in self.traced:
            return dict(self.traced[samples])
        if not self.moments:
            raise NotTraced(samples)
        at_moments = [moment.at(samples) for moment in self.moments]
        return max(at_moments, key=lambda sizes: sum(sizes.values()))

    def at(self, samples: int) -> int:
        """Bytes. Raises NotTraced."""
        return sum(self.anatomy(samples).values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Peaks":
        traced = {int(samples): kinds for samples, kinds in value["traced"].items()}
        return cls([Moment(**moment) for moment in value["moments"]], traced)


def find_peaks(
    record: Callable[[int], Mapping[int, RecordedStep]], sizes: Sequence[int]
) -> dict[int, Peaks]:
    """{micro-batches in a step, 1 or 2: its peaks}. `record(samples)` traces a step.

    Two traces are fitted, and the fit is compared with a third one, of the largest of `sizes`.
    Where they differ, since the operations depend on the size (a loss in pieces, a branch), each of
    `sizes` is traced. The smallest size is traced in any case: a step of one sample often consists
    of other operations.
    """
    # The largest as the check, since a line that is wrong shows most where it ends.
    traced = {size: record(size) for size in {min(sizes), max(sizes), *FITTED}}
    fitted = _fitted(traced, traced[max(sizes)])
    if not fitted:
        for size in sizes:
            if size not in traced:
                traced[size] = record(size)
    peaks = {}
    for micro_batches in (1, 2):
        anatomies = {size: steps[micro_batches].anatomy() for size, steps in traced.items()}
        moments = fitted[micro_batches].moments if fitted else ()
        peaks[micro_batches] = Peaks(moments, anatomies)
    return peaks


def _fitted(
    traced: Mapping[int, Mapping[int, RecordedStep]], largest: Mapping[int, RecordedStep]
) -> dict[int, Peaks]:
    """{micro-batches in a step: the fit}; empty where `largest` shows that it does not hold."""
    first, second = (traced[size] for size in FITTED)
    fitted = {}
    try:
        for micro_batches in first:
            fitted[micro_batches] = fit(first[micro_batches], second[micro_batches])
    except OtherOperations:
        return {}
    for micro_batches, step in largest.items():
        error = abs(fitted[micro_batches].at(step.samples) - step.peak)
        if error > TOLERANCE * step.peak:
            return {}
    return fitted


def fit(first: RecordedStep, second: RecordedStep) -> Peaks:
    """Raises OtherOperations."""
    # Compared by name and order: live bytes of two operations that are not the same make no line.
    if list(first.operations) != list(second.operations):
        raise OtherOperations(
            f"a step of {first.samples} samples has {len(first.operations)} operations, one of "
            f"{second.samples} has {len(second.operations)}, or others"
        )
    # (operations, kinds)
    low = np.array(first.live, dtype=float)
    high = np.array(second.live, dtype=float)
    per_sample = (high - low) / (second.samples - first.samples)
    fixed = low - first.samples * per_sample
    moments = []
    for i in _upper_envelope(fixed.sum(1), per_sample.sum(1)):
        moments.append(
            Moment(
                operation=first.operations[i],
                fixed=dict(zip(KINDS, fixed[i].tolist(), strict=True)),
                per_sample=dict(zip(KINDS, per_sample[i].tolist(), strict=True)),
            )
        )
    return Peaks(moments)


def _upper_envelope(fixed: Array, slope: Array) -> list[int]:
    """Indices of the lines fixed + slope * m that are the highest at some m of 1 or more."""
    envelope: list[int] = []
    m = 1.0
    best = int(np.argmax(fixed + slope * m))
    while True:
        envelope.append(best)
        is_steeper = slope > slope[best]
        if not is_steeper.any():
            return envelope
        # How far on each steeper line crosses the best one. The first to cross is the next; of
        # several that cross together, the steepest.
        gap = (fixed[best] + slope[best] * m) - (fixed + slope * m)
        steeper_by = np.where(is_steeper, slope - slope[best], 1.0)
        distance = np.where(is_steeper, gap / steeper_by, np.inf)
        following = int(np.lexsort((-slope, distance))[0])
        # Never backwards, which rounding could make of a crossing that is right here.
        m += max(0.0, float(distance[following]))
        best = following
