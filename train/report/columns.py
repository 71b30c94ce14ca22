"""The columns of a run in a table of runs: few, and each a figure of the whole run.

They are counted over all rows (WholeRun). What W&B would count by itself is something else: the value of the last row,
or a minimum or maximum that begins anew where the run resumes (seen: wandb 0.31, a peak of 9 became 2).
"""

from collections.abc import Mapping
from typing import Any

from train import metric_names
from train.report.best import Best
from train.report.tracker import Tracker
from train.report.whole_run import WholeRun

PLANNED = {
    metric_names.RUN_EFFECTIVE_BATCH: "effective_batch",
    metric_names.RUN_MICRO_BATCH: "micro_batch",
    metric_names.RUN_ACCUMULATION_STEPS: "accumulation_steps",
    metric_names.RUN_WORLD_SIZE: "world_size",
    metric_names.RUN_EXACT: "exact",
}
"""{column: key of the `derived` block}: known before the first step."""

AUDITED = (metric_names.SPLIT_ERROR, metric_names.VERIFIED, metric_names.VERIFIED_STEP)
"""Columns that are those of the last audit's row."""


class Columns:
    """A sink: counts what the rows say, and keeps W&B's summary of the run up to date."""

    def __init__(self, derived: Mapping[str, Any], best: Best, whole_run: WholeRun, tracker: Tracker) -> None:
        """`whole_run`: what an earlier start has counted and this one continues."""
        planned = {column: derived.get(key) for column, key in PLANNED.items()}
        self._planned = {column: value for column, value in planned.items() if value is not None}
        self._best = best
        self._whole_run = whole_run
        # By an audit of this start: no checkpoint holds it, and W&B keeps what an earlier start has said.
        self._audited: dict[str, float] = {}
        self._tracker = tracker
        # Now: a run that is killed before its first row has them too.
        tracker.forget_end()
        tracker.summarise(self._planned | self._measured())

    def log(self, row: Mapping[str, float]) -> None:
        self._whole_run.see(row)
        if metric_names.SPLIT_ERROR in row:
            self._audited = {name: row[name] for name in AUDITED if name in row}
        self._tracker.summarise(self._measured())

    def finish(self, exit_code: int) -> None:
        """All has been said with the last row."""

    def _measured(self) -> dict[str, float]:
        """{column: value}; what is not known is absent."""
        found = self._whole_run.peaks | self._audited
        throughput = self._whole_run.throughput()
        if throughput is not None:
            found[metric_names.RUN_SAMPLES_PER_SECOND] = throughput
        if self._best.value is not None:
            metric = self._best.metric.removeprefix(metric_names.EVAL)
            found[metric_names.BEST + metric] = self._best.value
            found[metric_names.BEST_STEP] = self._best.step
        return found
