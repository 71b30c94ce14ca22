"""The columns of a run in a table of runs: few, and each a figure of all its rows.

They are counted here (RunFigures). What W&B would count by itself is something else: the value of
the last row, or a minimum or maximum that begins again where the run resumes (seen: wandb 0.31, a
peak of 9 became 2).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import metric_names
from train.disk import NUMBER, Unreadable, read_json
from train.report.best import Best
from train.report.folder import RunFolder
from train.report.run_figures import RunFigures
from train.report.tracker import Tracker

PLANNED = {
    metric_names.RUN_EFFECTIVE_BATCH: "effective_batch",
    metric_names.RUN_MICRO_BATCH: "micro_batch",
    metric_names.RUN_ACCUMULATION_STEPS: "accumulation_steps",
    metric_names.RUN_WORLD_SIZE: "world_size",
    metric_names.RUN_EXACT: "exact",
}
"""{column: key of the `derived` block}: known before the first step."""

AUDITED = (metric_names.SPLIT_ERROR, metric_names.VERIFIED, metric_names.VERIFIED_STEP)
"""Columns, from the last row of an audit."""
AUDIT = "audit.json"
"""Holds them and their step, in the folder: a checkpoint has the same bytes with audits and
without.
"""


class Columns:
    """A sink: counts over the rows, and keeps W&B's summary of the run up to date."""

    def __init__(
        self,
        *,
        derived: Mapping[str, Any],
        best: Best,
        figures: RunFigures,
        tracker: Tracker,
        folder: RunFolder,
        step: int,
    ) -> None:
        """`figures`: what an earlier start has counted and this one continues, after `step`."""
        self._best = best
        self._figures = figures
        self._folder = folder
        self._last_audit = _last_audit(folder.path, step)
        self._tracker = tracker
        # From the plan: these do not change, so they are sent once, and rows bring the rest.
        planned = {}
        for column, key in PLANNED.items():
            if derived.get(key) is not None:
                planned[column] = derived[key]
        # Before the first row: a run that is killed before it has them too.
        tracker.forget_end()
        tracker.summarise(planned | self._measured())

    def log(self, row: Mapping[str, float]) -> None:
        self._figures.see(row)
        if metric_names.SPLIT_ERROR in row:
            # Updated, not replaced: a row names the last verified step of this start only. Until
            # there is one, that of an earlier start holds.
            self._last_audit |= _audited(row)
            self._folder.write_json(AUDIT, self._last_audit)
        self._tracker.summarise(self._measured())

    def finish(self, exit_code: int) -> None:
        """Nothing is left to do: the last row has brought all columns up to date."""

    def _measured(self) -> dict[str, float]:
        """{column: value}; what is not known is absent."""
        columns = dict(self._figures.peaks)
        for name in AUDITED:
            if name in self._last_audit:
                columns[name] = self._last_audit[name]
        throughput = self._figures.throughput()
        if throughput is not None:
            columns[metric_names.RUN_SAMPLES_PER_SECOND] = throughput
        if self._best.value is not None:
            metric = self._best.metric.removeprefix(metric_names.EVAL)
            columns[metric_names.BEST + metric] = self._best.value
            columns[metric_names.BEST_STEP] = self._best.step
        return columns


def _audited(row: Mapping[str, float]) -> dict[str, float]:
    names = (*AUDITED, metric_names.GLOBAL_STEP)
    return {name: row[name] for name in names if name in row}


def _last_audit(folder: Path, step: int) -> dict[str, float]:
    """The last audit of the run that resumes after `step`; empty where none is known."""
    shape = {f"{name}?": NUMBER for name in AUDITED} | {metric_names.GLOBAL_STEP: NUMBER}
    try:
        audit = _audited(read_json(folder / AUDIT, shape))
    except (OSError, Unreadable):
        return {}
    # An audit is written when it is made, and not with the next checkpoint.
    # A later one belongs to steps that are trained again.
    return audit if audit[metric_names.GLOBAL_STEP] <= step else {}
