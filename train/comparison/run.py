"""A run as a comparison sees it: what was asked for, and what was measured. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train import metric_names
from train.comparison.columns import Numbers, Rows
from train.comparison.curve import Curve


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
    rows: Rows
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
            changed = [
                f"{key} {there} -> {now}" for key, (there, now) in segment["changed"].items()
            ]
            what = ", ".join(changed) or f"resumed from {segment['resumed_from']}"
            told.append(f"after step {segment['after_step']}: {what}")
        return told

    @property
    def is_exact(self) -> bool | None:
        """None: its folder does not say."""
        exact = self.derived.get("exact")
        return None if exact is None else exact != "false"

    @cached_property
    def verified_at(self) -> str:
        """The step of the last audit that found its gradient exact: `1000`, or `100, not at 1000`,
        or `never`.

        Empty where it was not audited.
        """
        audits = self.rows.column(metric_names.SPLIT_ERROR).at
        if not len(audits):
            return ""
        verified = self.last(metric_names.VERIFIED_STEP)
        at = "never" if verified is None else f"{verified:.0f}"
        step = self.rows.values(metric_names.GLOBAL_STEP)[audits[-1]]
        return at if self.last(metric_names.VERIFIED) else f"{at}, not at {step:.0f}"

    @cached_property
    def train_rows(self) -> NDArray[np.int64]:
        """Which of the rows are of training, ascending."""
        return np.flatnonzero(self.rows.have(metric_names.LEARNING_RATE))

    @cached_property
    def are_full(self) -> NDArray[np.bool_]:
        """(rows,): whether its step took the effective batch, which the ragged last step of an
        epoch does not.
        """
        effective = self.derived.get("effective_batch")
        # Without one: of a schedule, whose steps differ.
        if effective is None or self.derived.get("steps_per_epoch") == 1:
            return np.ones(len(self.rows), dtype=bool)
        size = metric_names.EFFECTIVE_SIZE
        return (self.rows.values(size) == effective) | ~self.rows.have(size)

    @property
    def metrics(self) -> list[str]:
        """All metrics of all rows, in order of appearance."""
        return self.rows.metrics

    def curve(self, metric: str) -> Curve:
        """Of a metric."""
        column = self.rows.column(metric)
        samples = self.rows.values(metric_names.SAMPLES_SEEN)[column.at]
        return Curve(samples.astype(np.int64), column.values)

    def last(self, metric: str) -> float | None:
        return next(iter(self.curve(metric).heights[-1:].tolist()), None)

    def at(self, x: str) -> Curve:
        """{samples seen: x} for x = `samples`, `steps` or `hours` of training; only where it was
        measured.
        """
        if x == "samples":
            samples = self.curve(metric_names.SAMPLES_SEEN).samples
            return Curve(samples, samples.astype(float))
        if x == "steps":
            return self.curve(metric_names.GLOBAL_STEP)
        hours = self.curve(metric_names.HOURS)
        return Curve(np.append(np.int64(0), hours.samples), np.append(0.0, hours.heights))

    def hours_to(self, metric: str, target: float) -> float | None:
        """Training time up to the first evaluation that is not above the target."""
        curve = self.curve(metric)
        reached = np.flatnonzero(curve.heights <= target)
        return self.at("hours").get(int(curve.samples[reached[0]])) if len(reached) else None

    def lowest(self, metric: str) -> float | None:
        return min(finite(self.curve(metric).heights).tolist(), default=None)


def finite(values: Numbers) -> Numbers:
    return values[np.isfinite(values)]
