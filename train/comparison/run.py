"""A run as a comparison sees it: what was asked for, and what was measured. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from train import metric_names

Row = Mapping[str, float]  # a metric that was not finite is NaN; one that is not there was not measured
Curve = dict[int, float]  # samples seen -> value


@dataclass(frozen=True)
class Run:
    where: str
    """Its folder, or entity/project/run in W&B."""
    name: str
    identity: Mapping[str, Any]
    """{dotted key: value} of all that decides the curve."""
    execution: Mapping[str, Any]
    """{dotted key: value} of the rest of the config."""
    derived: Mapping[str, Any]
    environment: Mapping[str, Any]
    ended: str | None
    """How it ended: `finished`, or why not. None: it has not ended, or was killed."""
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()
    """What was found damaged or missing in it."""

    @property
    def seed(self) -> Any:
        return self.identity.get("seed")

    @property
    def recipe_hash(self) -> str:
        return str(self.derived["recipe_hash"])

    @property
    def changes(self) -> list[str]:
        """`after step 40: duration.steps 40 -> 60`: where it went on with other mathematics."""
        told = []
        for segment in self.derived.get("segments", [])[1:]:
            changed = [f"{key} {there} -> {now}" for key, (there, now) in segment["changed"].items()]
            what = ", ".join(changed) or f"resumed from {segment['resumed_from']}"
            told.append(f"after step {segment['after_step']}: {what}")
        return told

    @property
    def is_exact(self) -> bool | None:
        """None: its folder does not say."""
        exact = self.derived.get("exact")
        return None if exact is None else exact != "false"

    @cached_property
    def train_rows(self) -> list[Row]:
        return [row for row in self.rows if metric_names.LEARNING_RATE in row]

    def is_full(self, row: Row) -> bool:
        """Whether its step took the effective batch, which the ragged last step of an epoch does not."""
        effective = self.derived.get("effective_batch")
        if effective is None:  # of a schedule: steps differ
            return True
        return self.derived.get("steps_per_epoch") == 1 or row.get(metric_names.EFFECTIVE_SIZE, effective) == effective

    @cached_property
    def metrics(self) -> list[str]:
        """All metrics of all rows, in order of appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def curve(self, metric: str) -> Curve:
        """Of a metric; where a restart wrote a row again, the last one counts."""
        return {int(row[metric_names.SAMPLES_SEEN]): row[metric] for row in self.rows if metric in row}

    def last(self, metric: str) -> float | None:
        return next(reversed(self.curve(metric).values()), None)

    def at(self, x: str) -> dict[int, float]:
        """{samples seen: x} for x = `samples`, `steps` or `hours` of training; only where it was measured."""
        if x == "samples":
            return {samples: float(samples) for samples in self.curve(metric_names.SAMPLES_SEEN)}
        if x == "steps":
            return self.curve(metric_names.GLOBAL_STEP)
        return {0: 0.0} | self.curve(metric_names.HOURS)

    def hours_to(self, metric: str, target: float) -> float | None:
        """Training time up to the first evaluation that is not above the target."""
        hours = self.at("hours")
        for samples, value in self.curve(metric).items():
            if value <= target:
                return hours.get(samples)
        return None

    def lowest(self, metric: str) -> float | None:
        return min((value for value in self.curve(metric).values() if math.isfinite(value)), default=None)
