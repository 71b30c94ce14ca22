"""How far the curves of runs with the same seed are apart, where they have rows at the same samples seen. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.comparison.run import Run
from train.errors import counted


@dataclass(frozen=True)
class Agreement:
    """Measured, not judged."""

    metric: str
    largest: float
    """Largest absolute difference between two runs with the same seed; infinite where only one of them is finite."""
    height: float
    """The largest value on the curves."""
    at_samples: int
    rows: int
    """Places that were compared: samples seen, seed by seed, at which two runs or more have a row."""
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
        places = shared_values(same, metric)
        if places:
            seeds[seed] = True
        rows += len(places)
        for samples, values in places.items():
            apart = _apart(values)
            height = max([height, *(abs(value) for value in values if math.isfinite(value))])
            if apart > largest:
                largest, at_samples = apart, samples
    return Agreement(metric, largest, height, at_samples, rows, tuple(seeds)) if rows else None


def by_seed(runs: Sequence[Run]) -> dict[Any, list[Run]]:
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(run)
    return found


def shared_values(runs: Sequence[Run], metric: str) -> dict[int, list[float]]:
    """{samples seen: the values there}, where two runs or more have one."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for samples, value in run.curve(metric).items():
            values.setdefault(samples, []).append(value)
    return {samples: several for samples, several in sorted(values.items()) if len(several) > 1}


def without_partner(runs: Sequence[Run], metric: str) -> list[Run]:
    """Runs that no other run with the same seed shares a row with."""
    alone = []
    for same in by_seed(runs).values():
        for run in same:
            own = run.curve(metric).keys()
            if not any(own & other.curve(metric).keys() for other in same if other is not run):
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
        f"{run.name} (seed {run.seed}) has no partner: no other run with this seed has {train_loss} at the same samples"
        for run in without_partner(runs, train_loss)
    ]
    return reasons


def _state(run: Run) -> str:
    return f"ended early: {run.ended}" if run.ended else "has not ended, or was killed"


def _apart(values: Sequence[float]) -> float:
    """Largest difference; two values that are both not finite count as the same."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0
    return max(finite) - min(finite) if len(finite) == len(values) else math.inf
