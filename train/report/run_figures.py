"""Figures over all rows of a run so far. A checkpoint holds them, so that a resume need not read
the rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train import metric_names

PEAKS = {
    metric_names.RUN_PEAK_ALLOCATED: metric_names.PEAK_ALLOCATED,
    metric_names.RUN_PEAK_RSS: metric_names.PEAK_RSS,
}
"""{column: metric of the rows whose maximum it is}"""
OF_THROUGHPUT = (metric_names.SAMPLES_SEEN, metric_names.HOURS, metric_names.SAMPLES_PER_SECOND)


@dataclass
class RunFigures:
    peaks: dict[str, float] = field(default_factory=dict)
    """By column."""
    first: dict[str, float] | None = None
    """What a throughput needs of the first row of training; None: there was none."""
    last: dict[str, float] | None = None
    """The same of the last one."""

    def see(self, row: Mapping[str, Any]) -> None:
        for column, metric in PEAKS.items():
            peak = row.get(metric)
            # A row without the metric, or with NaN, must not replace the peak so far.
            if peak is not None and math.isfinite(peak):
                self.peaks[column] = max(peak, self.peaks.get(column, peak))
        # Rows of evaluations and saves have no rate: they are no rows of training.
        if metric_names.LEARNING_RATE in row:
            self.last = {name: row[name] for name in OF_THROUGHPUT if row.get(name) is not None}
            if not self.first:
                self.first = self.last

    def throughput(self) -> float | None:
        """Samples per second from the first row to the last, as in a comparison: what comes before
        the first row is start-up as well.
        """
        if self.first is None or self.last is None:
            return None
        samples = self.last[metric_names.SAMPLES_SEEN] - self.first[metric_names.SAMPLES_SEEN]
        # metric_names.HOURS is training time: evaluations and saves are not in it.
        seconds = 3600 * (self.last[metric_names.HOURS] - self.first[metric_names.HOURS])
        # One row alone has no distance: then the row's own figure is all that is known.
        if samples > 0 and seconds > 0:
            return samples / seconds
        return self.last.get(metric_names.SAMPLES_PER_SECOND)
