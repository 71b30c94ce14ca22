"""A comparison as JSON: every number of the tables, unrounded. Pure."""

import dataclasses
import math
from typing import Any

from train.comparison.comparison import Comparison
from train.comparison.cost import Cost
from train.comparison.keys import Key
from train.comparison.outcome import Outcome
from train.comparison.run import Run
from train.comparison.spread import Spread


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What is unknown is absent or null; so is what is not finite."""
    target = comparison.target
    data = {
        "headline": comparison.headline,
        "verdict": comparison.verdict,
        "same_mathematics": comparison.same_mathematics,
        # The keys are what scripts of users read: they stay, whatever the fields are called.
        "agreements": comparison.distances,
        "target": target and {"metric": target.metric, "loss": target.loss},
        "set_ups": [_set_up(comparison, index) for index in comparison.indices],
        "differing_keys": list(map(_key, comparison.keys)),
        "left_out": comparison.skipped,
        "notes": comparison.notes,
    }
    # JSON has no NaN: `compare` prints with allow_nan=False, which would raise.
    plain: dict[str, Any] = _plain(data)
    return plain


def _key(key: Key) -> dict[str, Any]:
    return {"key": key.name, "kind": key.kind, "values": key.values}


def _set_up(comparison: Comparison, index: int) -> dict[str, Any]:
    group = comparison.groups[index]
    target = comparison.target
    # Runs and costs are in one order: `compare` made the costs from the group's runs.
    runs = zip(group.runs, comparison.costs[index], strict=True)
    return {
        "label": group.label,
        "recipe_hash": group.recipe,
        "seeds": group.seeds,
        "outcome": _outcome(comparison.outcomes[index]),
        "hours_to_target": target and target.hours[index],
        "runs": [_run(run, cost) for run, cost in runs],
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "samples": outcome.samples,
        "steps": outcome.steps,
        "metrics": outcome.metrics,
        "noise_scale": outcome.noise_scale,
        "noise_scale_range": outcome.noise_scale_range,
        "break_even": outcome.break_even,
        "break_even_range": outcome.break_even_range,
        "apart": outcome.distances,
    }


def _run(run: Run, cost: Cost) -> dict[str, Any]:
    return {
        "name": run.name,
        "where": run.where,
        "seed": run.seed,
        "ended": run.ended,
        "derived": run.derived,
        "git": run.environment.get("git"),
        "host": run.environment.get("host"),
        "cost": dataclasses.asdict(cost) | {"time_shares": cost.shares},
    }


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, numbers that are not finite as None, all the way down."""
    # Before dataclasses in general: mean and deviation are properties, which fields() does not
    # name.
    if isinstance(value, Spread):
        return {
            "mean": _plain(value.mean),
            "deviation": value.deviation,
            "values": _plain(value.values),
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict: it copies all the way down, and would leave no Spread to be seen.
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
