"""A run as a comparison sees it: what was configured, and what was measured. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train import metric_names
from train.comparison.columns import Numbers, Rows
from train.comparison.curve import Curve
from train.comparison.segments import segments_in


@dataclass(frozen=True, kw_only=True)
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
    """What is damaged or missing in it."""

    @property
    def seed(self) -> Any:
        return self.identity.get("seed")

    @property
    def recipe_hash(self) -> str:
        return str(self.derived["recipe_hash"])

    @property
    def state(self) -> str:
        """In a sentence after its name; for one that is not finished."""
        if self.ended:
            return f"ended early: {self.ended}"
        return "has not ended, or was killed"

    @property
    def changes(self) -> list[str]:
        """`after step 40: duration.steps 40 -> 60`: where it resumed with other mathematics."""
        changes = []
        # The first segment is the start of training: it changed nothing.
        for segment in segments_in(self.derived)[1:]:
            keys = segment["changed"].items()
            changed = ", ".join(f"{key} {before} -> {after}" for key, (before, after) in keys)
            # No change is known where the checkpoint's run was not there to be asked.
            what = changed or f"resumed from {segment.get('resumed_from')}"
            changes.append(f"after step {segment['after_step']}: {what}")
        return changes

    @property
    def is_exact(self) -> bool | None:
        """None: unknown."""
        exact = self.derived.get("exact")
        return None if exact is None else exact != "false"

    @cached_property
    def verified_at(self) -> str:
        """`1000`: the last step whose audit verified its gradient.

        `100, not at 1000` where a later audit did not, `never` where none did; empty where it was
        not audited.
        """
        # Rows of an audit have an error; not all of them are verified.
        audits = self.rows.column(metric_names.SPLIT_ERROR).at
        if not len(audits):
            return ""
        step = self.last(metric_names.VERIFIED_STEP)
        verified = "never" if step is None else f"{step:.0f}"
        if self.last(metric_names.VERIFIED):
            return verified
        last_audit = self.rows.values(metric_names.GLOBAL_STEP)[audits[-1]]
        return f"{verified}, not at {last_audit:.0f}"

    @cached_property
    def train_rows(self) -> NDArray[np.int64]:
        """Indices of the rows of training, ascending; only those have a learning rate."""
        return np.flatnonzero(self.rows.has(metric_names.LEARNING_RATE))

    @cached_property
    def are_full(self) -> NDArray[np.bool_]:
        """(rows,): whether its step took the effective batch.

        The ragged last step of an epoch does not.
        """
        effective = self.derived.get("effective_batch")
        # With one step an epoch all steps are alike, ragged or not.
        # A schedule of the batch has no effective batch: its steps differ.
        if effective is None or self.derived.get("steps_per_epoch") == 1:
            return np.ones(len(self.rows), dtype=bool)
        sizes = self.rows.values(metric_names.EFFECTIVE_SIZE)
        # Rows without a size are of an evaluation or a save: they are no ragged steps.
        return (sizes == effective) | ~self.rows.has(metric_names.EFFECTIVE_SIZE)

    @property
    def metrics(self) -> list[str]:
        """Of all rows, in order of appearance."""
        return self.rows.metrics

    def curve(self, metric: str) -> Curve:
        column = self.rows.column(metric)
        # Only the rows that have the metric: evaluations and steps have rows of their own.
        samples = self.rows.values(metric_names.SAMPLES_SEEN)[column.at]
        return Curve(samples.astype(np.int64), column.values)

    def last(self, metric: str) -> float | None:
        heights = self.curve(metric).heights
        if not len(heights):
            return None
        return float(heights[-1])

    def x_axis(self, x: str) -> Curve:
        """{samples seen: x}, where it was measured. x: `samples`, `steps` or `hours` (training)."""
        if x == "samples":
            samples = self.curve(metric_names.SAMPLES_SEEN).samples
            return Curve(samples, samples.astype(float))
        # What a row does not know is absent here, so that its point is left out of a picture.
        if x == "steps":
            return self.curve(metric_names.GLOBAL_STEP)
        # Training starts at 0 h, before the first row.
        hours = self.curve(metric_names.HOURS)
        return Curve(np.append(np.int64(0), hours.samples), np.append(0.0, hours.heights))

    def hours_to(self, metric: str, target: float) -> float | None:
        """Training time up to the first evaluation that is not above the target."""
        curve = self.curve(metric)
        # NaN <= target is false: a loss that is not finite reaches nothing.
        reached = np.flatnonzero(curve.heights <= target)
        if not len(reached):
            return None
        return self.x_axis("hours").get(int(curve.samples[reached[0]]))

    def lowest(self, metric: str) -> float | None:
        heights = finite(self.curve(metric).heights)
        if not len(heights):
            return None
        return float(heights.min())


def finite(values: Numbers) -> Numbers:
    return values[np.isfinite(values)]
