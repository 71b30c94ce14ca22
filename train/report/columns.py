"""The columns of a run in a table of runs: few, and each a figure of the whole run.

They are counted over metrics.jsonl. What W&B would count by itself is something else: the value of the last row, or a
minimum or maximum that begins anew where the run resumes (seen: wandb 0.31, a peak of 9 became 2).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import metric_names
from train.disk import open_lines, parse
from train.report.best import Best
from train.report.tracker import Tracker

PLANNED = {
    metric_names.RUN_EFFECTIVE_BATCH: "effective_batch",
    metric_names.RUN_MICRO_BATCH: "micro_batch",
    metric_names.RUN_ACCUMULATION_STEPS: "accumulation_steps",
    metric_names.RUN_WORLD_SIZE: "world_size",
    metric_names.RUN_EXACT: "exact",
}
"""{column: key of the `derived` block}: known before the first step."""
PEAKS = {
    metric_names.RUN_PEAK_ALLOCATED: metric_names.PEAK_ALLOCATED,
    metric_names.RUN_PEAK_RSS: metric_names.PEAK_RSS,
}
"""{column: metric of the rows whose maximum it is}"""


class Columns:
    """A sink: counts what the rows say, and keeps W&B's summary of the run up to date."""

    def __init__(self, derived: Mapping[str, Any], best: Best, journal: Path, tracker: Tracker) -> None:
        """`journal`: metrics.jsonl, whose rows an earlier start has written and this one continues."""
        planned = {column: derived.get(key) for column, key in PLANNED.items()}
        self._planned = {column: value for column, value in planned.items() if value is not None}
        self._best = best
        self._tracker = tracker
        self._peaks: dict[str, float] = {}
        self._first: Mapping[str, Any] = {}  # rows of training
        self._last: Mapping[str, Any] = {}
        for line in open_lines(journal):
            self._count(parse(line))
        # Now: a run that is killed before its first row has them too.
        tracker.forget_end()
        tracker.summarise(self._planned | self._measured())

    def log(self, row: Mapping[str, float]) -> None:
        self._count(row)
        self._tracker.summarise(self._measured())

    def finish(self, exit_code: int) -> None:
        """All has been said with the last row."""

    def _measured(self) -> dict[str, float]:
        """{column: value}; what is not known is absent."""
        found = dict(self._peaks)
        throughput = self._throughput()
        if throughput is not None:
            found[metric_names.RUN_SAMPLES_PER_SECOND] = throughput
        if self._best.value is not None:
            metric = self._best.metric.removeprefix(metric_names.EVAL)
            found[metric_names.BEST + metric] = self._best.value
            found[metric_names.BEST_STEP] = self._best.step
        return found

    def _count(self, row: Mapping[str, Any]) -> None:
        for column, metric in PEAKS.items():
            peak = row.get(metric)
            if peak is not None and math.isfinite(peak):
                self._peaks[column] = max(peak, self._peaks.get(column, peak))
        if metric_names.LEARNING_RATE in row:
            self._first = self._first or row
            self._last = row

    def _throughput(self) -> float | None:
        """From the first row to the last, as in a comparison: what comes before the first row is start-up as well."""
        if not self._last:
            return None
        first, last = self._first, self._last
        samples = last[metric_names.SAMPLES_SEEN] - first[metric_names.SAMPLES_SEEN]
        seconds = 3600 * (last[metric_names.HOURS] - first[metric_names.HOURS])
        if samples > 0 and seconds > 0:
            return float(samples / seconds)
        rate: float | None = last.get(metric_names.SAMPLES_PER_SECOND)
        return rate
