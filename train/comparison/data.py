"""A comparison as JSON: every number of the tables, unrounded. Pure."""

import dataclasses
import math
from typing import Any

from train.comparison.facts import Comparison
from train.comparison.group import Spread
from train.comparison.run import Run


def as_data(comparison: Comparison) -> dict[str, Any]:
    """What is unknown is absent or null; so is what is not finite."""
    groups = zip(comparison.groups, comparison.costs, comparison.outcomes, strict=True)
    told = {
        "headline": comparison.headline,
        "verdict": comparison.verdict,
        "same_mathematics": comparison.same_mathematics,
        "agreements": comparison.agreements,
        "target": comparison.target
        and {"metric": comparison.target.metric, "loss": comparison.target.loss},
        "set_ups": [
            {
                "label": group.label,
                "recipe_hash": group.recipe,
                "seeds": group.seeds,
                "outcome": outcome,
                "hours_to_target": comparison.target and comparison.target.hours[index],
                "runs": [
                    _run(run) | {"cost": dataclasses.asdict(cost) | {"time_shares": cost.shares}}
                    for run, cost in zip(group.runs, costs, strict=True)
                ],
            }
            for index, (group, costs, outcome) in enumerate(groups)
        ],
        "differing_keys": [
            {"key": key.name, "kind": key.kind, "values": key.values} for key in comparison.keys
        ],
        "left_out": comparison.left_out,
        "notes": comparison.notes,
    }
    plain: dict[str, Any] = _plain(told)
    return plain


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "where": run.where,
        "seed": run.seed,
        "ended": run.ended,
        "derived": run.derived,
        "git": run.environment.get("git"),
        "host": run.environment.get("host"),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return {
            "mean": _plain(value.mean),
            "deviation": value.deviation,
            "values": _plain(value.values),
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
