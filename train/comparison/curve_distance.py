"""Max absolute difference between curves of the same seed, at the same samples seen. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.comparison.columns import Numbers
from train.comparison.curve import Curve, Samples, common_samples
from train.comparison.run import Run
from train.errors import counted


@dataclass(frozen=True, kw_only=True)
class CurveDistance:
    """Measured, not judged. The names of the fields are keys of `compare --json`."""

    metric: str
    largest: float
    """Max absolute difference between two runs with the same seed; infinite where only one of them
    is finite.
    """
    height: float
    """The largest absolute value on the curves."""
    at_samples: int
    """Samples seen at the largest difference."""
    rows: int
    """Numbers of samples seen, seed by seed, at which two runs or more have a row."""
    seeds: tuple[Any, ...]

    def __str__(self) -> str:
        basis = f"{counted(self.rows, 'common row')}, {counted(len(self.seeds), 'seed')}"
        return f"{self.metric} differs by at most {self.largest:.2g} ({basis})"


@dataclass(frozen=True)
class _Overlap:
    """Of several curves, where two or more have a value."""

    samples: Samples
    differences: Numbers
    """Between the largest and the smallest value. 0 where none is finite, infinite where some are
    not.
    """
    height: float
    """The largest finite absolute value."""


def curve_distance(runs: Sequence[Run], metric: str) -> CurveDistance | None:
    """Over all pairs with the same seed. None: no two of them have a row at the same samples."""
    return _largest_distance(list(by_seed(runs).values()), metric)


def curve_distance_per_recipe(runs: Sequence[Run], metric: str) -> CurveDistance | None:
    """As `curve_distance`, over pairs that have the recipe in common too."""
    recipes: dict[str, list[Run]] = {}
    # Recipe and seed: only then are two curves meant to be the same.
    for run in runs:
        recipes.setdefault(run.recipe_hash, []).append(run)
    repetitions: list[list[Run]] = []
    for same_recipe in recipes.values():
        repetitions.extend(by_seed(same_recipe).values())
    return _largest_distance(repetitions, metric)


def _largest_distance(repetitions: Sequence[list[Run]], metric: str) -> CurveDistance | None:
    """`repetitions`: runs that are compared with each other, which have one seed."""
    # Below any difference: one of 0 is a result too, and has a place.
    largest = -1.0
    height = 0.0
    at_samples = 0
    rows = 0
    seeds = []
    # Seed by seed: two runs of different seeds see other samples.
    for same_seed in repetitions:
        overlap = _overlap([run.curve(metric) for run in same_seed])
        if not len(overlap.samples):
            continue
        seeds.append(same_seed[0].seed)
        rows += len(overlap.samples)
        height = max(height, overlap.height)
        # argmax takes an infinite difference first: one run has diverged, and the other has not.
        farthest = int(overlap.differences.argmax())
        if overlap.differences[farthest] > largest:
            largest = float(overlap.differences[farthest])
            at_samples = int(overlap.samples[farthest])
    if not rows:
        return None
    return CurveDistance(
        metric=metric,
        largest=largest,
        height=height,
        at_samples=at_samples,
        rows=rows,
        seeds=tuple(dict.fromkeys(seeds)),
    )


def by_seed(runs: Sequence[Run]) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.seed, []).append(run)
    return groups


def _overlap(curves: Sequence[Curve]) -> _Overlap:
    all_samples = np.concatenate([curve.samples for curve in curves])
    all_heights = np.concatenate([curve.heights for curve in curves])
    # All points of all curves in one array, by samples seen: no loop over rows.
    order = np.argsort(all_samples, kind="stable")
    heights = all_heights[order]
    samples, starts, counts = np.unique(all_samples[order], return_index=True, return_counts=True)
    is_shared = counts > 1
    if not is_shared.any():
        return _Overlap(np.empty(0, np.int64), np.empty(0), 0.0)

    # One pass over the values of all curves, cut where the samples seen change: `reduceat`.
    is_finite = np.isfinite(heights)
    most = np.maximum.reduceat(np.where(is_finite, heights, -np.inf), starts)
    least = np.minimum.reduceat(np.where(is_finite, heights, np.inf), starts)
    num_finite = np.add.reduceat(is_finite.astype(np.int64), starts)
    # Infinite unless shown otherwise: where one curve is finite and another is not.
    differences = np.full(len(samples), np.inf)
    differences[num_finite == 0] = 0.0
    all_finite = num_finite == counts
    differences[all_finite] = most[all_finite] - least[all_finite]

    shared_heights = np.abs(heights[np.repeat(is_shared, counts) & is_finite])
    height = float(shared_heights.max(initial=0.0))
    return _Overlap(samples[is_shared], differences[is_shared], height)


def without_partner(runs: Sequence[Run], metric: str) -> list[Run]:
    """Runs that no other run with the same seed shares a row with."""
    alone = []
    for same_seed in by_seed(runs).values():
        for run in same_seed:
            # By identity: two runs may be equal in all their fields.
            others = [other for other in same_seed if other is not run]
            if not _shares_a_row(run, others, metric):
                alone.append(run)
    return alone


def _shares_a_row(run: Run, others: Sequence[Run], metric: str) -> bool:
    curve = run.curve(metric)
    return any(len(common_samples([curve, other.curve(metric)])) for other in others)


def reasons_for_unequal(runs: Sequence[Run], losses: Sequence[str], tolerance: float) -> list[str]:
    """Why runs are not equal within the tolerance; empty where they are.

    `losses`: metrics, the training loss first.
    """
    # A run that has not finished may be equal so far: that is not what was asked.
    reasons = [f"{run.name} {run.state}" for run in runs if run.ended != "finished"]
    for metric in losses:
        distance = curve_distance(runs, metric)
        # NaN is within no tolerance.
        if distance and not distance.largest <= tolerance:
            reasons.append(f"{distance}, at {distance.at_samples:,} samples")
    for run in without_partner(runs, losses[0]):
        reasons.append(
            f"{run.name} (seed {run.seed}) has no partner: no other run with this seed has "
            f"{losses[0]} at the same samples"
        )
    return reasons
