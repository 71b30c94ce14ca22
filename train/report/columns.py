"""The columns of a run in a table of runs: few, and each a figure of the whole run.

They are counted over all rows (WholeRun). What W&B would count by itself is something else: the
value of the last row, or a minimum or maximum that begins anew where the run resumes (seen: wandb
0.31, a peak of 9 became 2).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import metric_names
from train.disk import NUMBER, Unreadable, read_json
from train.report.best import Best
from train.report.folder import RunFolder
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

AUDITED = (
    metric_names.SPLIT_ERROR,
    metric_names.VERIFIED,
    metric_names.VERIFIED_STEP,
    metric_names.GLOBAL_STEP,
)
"""Of the last audit's row. All but the last are columns."""
AUDIT = "audit.json"
"""Holds them, in the folder: a checkpoint has the same bytes with audits and without."""


class Columns:
    """A sink: counts what the rows say, and keeps W&B's summary of the run up to date."""

    def __init__(
        self,
        derived: Mapping[str, Any],
        best: Best,
        whole_run: WholeRun,
        tracker: Tracker,
        folder: RunFolder,
        step: int,
    ) -> None:
        """`whole_run`: what an earlier start has counted and this one continues, after `step`."""
        planned = {column: derived.get(key) for column, key in PLANNED.items()}
        self._planned = {column: value for column, value in planned.items() if value is not None}
        self._best = best
        self._whole_run = whole_run
        self._folder = folder
        self._audited = _last_audit(folder.path, step)
        self._tracker = tracker
        # Now: a run that is killed before its first row has them too.
        tracker.forget_end()
        tracker.summarise(self._planned | self._measured())

    def log(self, row: Mapping[str, float]) -> None:
        self._whole_run.see(row)
        if metric_names.SPLIT_ERROR in row:
            # A row names a step that this start has verified: until there is one, that of an
            # earlier start holds.
            self._audited |= {name: row[name] for name in AUDITED if name in row}
            self._folder.write_json(AUDIT, self._audited)
        self._tracker.summarise(self._measured())

    def finish(self, exit_code: int) -> None:
        """All has been said with the last row."""

    def _measured(self) -> dict[str, float]:
        """{column: value}; what is not known is absent."""
        audited = {
            name: value for name, value in self._audited.items() if name != metric_names.GLOBAL_STEP
        }
        found = self._whole_run.peaks | audited
        throughput = self._whole_run.throughput()
        if throughput is not None:
            found[metric_names.RUN_SAMPLES_PER_SECOND] = throughput
        if self._best.value is not None:
            metric = self._best.metric.removeprefix(metric_names.EVAL)
            found[metric_names.BEST + metric] = self._best.value
            found[metric_names.BEST_STEP] = self._best.step
        return found


def _last_audit(folder: Path, step: int) -> dict[str, float]:
    """By column, of the last audit of the run that goes on after `step`; empty where nobody knows
    of one.
    """
    shape = {f"{name}?": NUMBER for name in AUDITED} | {metric_names.GLOBAL_STEP: NUMBER}
    try:
        found: dict[str, float] = read_json(folder / AUDIT, shape)
    except (OSError, Unreadable):
        return {}
    known = {name: found[name] for name in AUDITED if name in found}
    return known if known[metric_names.GLOBAL_STEP] <= step else {}
