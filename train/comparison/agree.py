"""How far the curves of runs with the same seed are apart, where they have rows at the same samples
seen. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.comparison.columns import Numbers
from train.comparison.curve import Curve, Places, common
from train.comparison.run import Run
from train.errors import counted


@dataclass(frozen=True)
class Agreement:
    """Measured, not judged."""

    metric: str
    largest: float
    """Largest absolute difference between two runs with the same seed; infinite where only one of
    them is finite.
    """
    height: float
    """The largest value on the curves."""
    at_samples: int
    rows: int
    """Places that were compared: samples seen, seed by seed, at which two runs or more have a row.
    """
    seeds: tuple[Any, ...]

    def __str__(self) -> str:
        where = f"{counted(self.rows, 'common row')}, {counted(len(self.seeds), 'seed')}"
        return f"{self.metric} differs by at most {self.largest:.2g} ({where})"


def agreement(runs: Sequence[Run], metric: str, same_recipe: bool = False) -> Agreement | None:
    """Over all pairs with the same seed, and the same recipe where that is asked for.

    None: no two of them have a row at the same samples seen.
    """
    largest, at_samples, rows, seeds = -1.0, 0, 0, {}
    height = 0.0
    recipes = dict.fromkeys(run.recipe_hash for run in runs) if same_recipe else [None]
    alike = [[run for run in runs if recipe in (None, run.recipe_hash)] for recipe in recipes]
    for seed, same in (item for several in alike for item in by_seed(several).items()):
        places, apart, here = shared_places([run.curve(metric) for run in same])
        if not len(places):
            continue
        seeds[seed] = True
        rows += len(places)
        height = max(height, here)
        farthest = int(apart.argmax())
        if apart[farthest] > largest:
            largest, at_samples = float(apart[farthest]), int(places[farthest])
    return Agreement(metric, largest, height, at_samples, rows, tuple(seeds)) if rows else None


def by_seed(runs: Sequence[Run]) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(run)
    return found


def shared_places(curves: Sequence[Curve]) -> tuple[Places, Numbers, float]:
    """Where two curves or more have a value: the samples seen, in order, how far the values are
    apart there, and the largest that is finite.

    Values that are all not finite count as the same; one that is, beside one that is not, is
    infinitely far.
    """
    samples = np.concatenate([curve.samples for curve in curves])
    values = np.concatenate([curve.heights for curve in curves])
    order = np.argsort(samples, kind="stable")
    places, starts, counts = np.unique(samples[order], return_index=True, return_counts=True)
    if not (counts > 1).any():
        return np.empty(0, np.int64), np.empty(0), 0.0
    values = values[order]
    is_finite = np.isfinite(values)
    most = np.maximum.reduceat(np.where(is_finite, values, -np.inf), starts)
    least = np.minimum.reduceat(np.where(is_finite, values, np.inf), starts)
    known = np.add.reduceat(is_finite.astype(np.int64), starts)
    apart = np.where(known == counts, most - least, np.where(known == 0, 0.0, np.inf))
    is_shared = counts > 1
    heights = np.abs(values[np.repeat(is_shared, counts) & is_finite])
    return places[is_shared], apart[is_shared], float(heights.max(initial=0.0))


def without_partner(runs: Sequence[Run], metric: str) -> list[Run]:
    """Runs that no other run with the same seed shares a row with."""
    alone = []
    for same in by_seed(runs).values():
        for run in same:
            own = run.curve(metric)
            if not any(
                len(common([own, other.curve(metric)])) for other in same if other is not run
            ):
                alone.append(run)
    return alone


def unequal(runs: Sequence[Run], metrics: Sequence[str], tolerance: float) -> list[str]:
    """Why they cannot be called equal within the tolerance; empty where they can."""
    reasons = [f"{run.name} {_state(run)}" for run in runs if run.ended != "finished"]
    for metric in metrics:
        found = agreement(runs, metric)
        if found and not found.largest <= tolerance:
            reasons.append(f"{found}, at {found.at_samples:,} samples")
    train_loss = metrics[0]
    reasons += [
        f"{run.name} (seed {run.seed}) has no partner: no other run with this seed has "
        f"{train_loss} at the same samples"
        for run in without_partner(runs, train_loss)
    ]
    return reasons


def _state(run: Run) -> str:
    return f"ended early: {run.ended}" if run.ended else "has not ended, or was killed"
