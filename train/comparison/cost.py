"""What a run cost, from its rows. Nothing is estimated: what was not measured is None or absent.

Pure.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train import metric_names
from train.comparison.run import Run, finite

Indices = NDArray[np.int64]
"""Of rows, ascending."""

KINDS = {metric_names.PEAK_ALLOCATED: "GPU allocated", metric_names.PEAK_RSS: "process RSS"}
"""What stands for the memory of a run, the first that it has; each the largest rank."""
PHASES = {
    metric_names.DATA_SECONDS: "data",
    metric_names.FORWARD_BACKWARD_SECONDS: "forward + backward",
    metric_names.SYNC_SECONDS: "gradient sync",
    metric_names.OPTIMIZER_SECONDS: "optimizer",
    metric_names.REST_SECONDS: "rest",
}
ACTIVATIONS = "activations"
PROCESS = KINDS[metric_names.PEAK_RSS]
BUSY = 0.05
"""A run that waited for a processor for more than this share of its time was timed beside something
else.
"""
FEWEST_FOR_P95 = 20
"""Rows; with fewer, the 95th percentile would be the maximum."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The names of the fields are keys of `compare --json`.

    The first of several rows counts for no time of a step: it holds the start-up of kernels and
    caches.
    """

    memory_kind: str | None
    peak_gib: float | None
    noise_gib: float
    """Of the peak, as far as full steps show it: of a process from row to row, of a GPU 0."""
    activations_gib: float | None
    """What a CPU run saves for the backward pass; a GPU's peak includes them."""
    peaks_gib: dict[str, float]
    """Every memory/*_gib of the run: its largest value."""
    samples_per_second: float | None
    step_seconds: float | None
    """Mean over rows."""
    step_p50_seconds: float | None
    step_p95_seconds: float | None
    phase_seconds: dict[str, float]
    """Of a full step, by name; forward + backward without the sync."""
    hours: float | None
    """Of training, up to the last row."""
    mfu: float | None
    """Mean over rows: a share of the devices' peak."""
    step_error: float
    """Two standard errors of the mean of step_seconds, as a share of it; 0 with few rows."""
    cpu_wait: float | None
    """Mean over rows: the share of the time in which a rank had no processor."""

    @property
    def was_disturbed(self) -> bool:
        return self.cpu_wait is not None and self.cpu_wait > BUSY

    @property
    def shares(self) -> dict[str, float]:
        """Of the phases in their sum."""
        total = sum(self.phase_seconds.values())
        if total <= 0:
            return {}
        return {name: seconds / total for name, seconds in self.phase_seconds.items()}


@dataclass(frozen=True)
class Memory:
    """What stands for the memory of all runs of a comparison."""

    name: str
    of: Callable[[Cost], float | None]
    """GiB."""
    is_process: bool
    """Mostly Python and torch, and never the same twice."""


def memory_of(costs: Iterable[Cost]) -> Memory | None:
    """Activations where all runs counted them on a CPU, else the peak.

    None where not all have the same kind.
    """
    # Read twice below: an iterator would be empty the second time.
    costs = list(costs)
    kinds = {cost.memory_kind for cost in costs}
    # The peak of a process is mostly Python and torch, so what a step holds is lost in it.
    if kinds == {PROCESS} and all(cost.activations_gib for cost in costs):
        return Memory(ACTIVATIONS, lambda cost: cost.activations_gib, is_process=False)
    if len(kinds) != 1 or None in kinds:
        return None
    kind = kinds.pop()
    return Memory(f"peak memory ({kind})", lambda cost: cost.peak_gib, is_process=kind == PROCESS)


def cost_of(run: Run) -> Cost:
    rows = run.train_rows
    # The first row holds the start-up of kernels and caches, unless there is no other.
    later = rows[1:] if len(rows) > 1 else rows
    full = later[run.are_full[later]]  # ragged steps have less to compute, and to hold
    peaks = _peaks_gib(run, rows)
    kind = next((metric for metric in KINDS if metric in peaks), None)
    is_process = kind == metric_names.PEAK_RSS
    # A GPU's allocator gives the same peak each time; a process never does.
    noise = 0.0
    if is_process:
        noise = _range(_values(run, full, metric_names.PEAK_RSS))
    steps = _values(run, later, metric_names.STEP_SECONDS)
    return Cost(
        memory_kind=KINDS[kind] if kind else None,
        peak_gib=peaks[kind] if kind else None,
        noise_gib=noise,
        activations_gib=peaks.get(metric_names.ACTIVATIONS) if is_process else None,
        peaks_gib=peaks,
        samples_per_second=_throughput(run, rows),
        step_seconds=_mean(steps),
        step_p50_seconds=statistics.median(steps) if steps else None,
        step_p95_seconds=_p95(steps),
        phase_seconds=_phase_seconds(run, full),
        hours=max(_values(run, rows, metric_names.HOURS), default=None),
        mfu=_mean(_values(run, later, metric_names.MFU)),
        step_error=_relative_error(steps),
        cpu_wait=_mean(_values(run, later, metric_names.CPU_WAIT)),
    )


def _peaks_gib(run: Run, rows: Indices) -> dict[str, float]:
    peaks = {}
    for metric in run.metrics:
        # Every memory metric, not only those that KINDS knows: the table of memory shows all.
        if metric.startswith("memory/") and metric.endswith("_gib"):
            values = _values(run, rows, metric)
            if values:
                peaks[metric] = max(values)
    return peaks


def _throughput(run: Run, rows: Indices) -> float | None:
    """Samples over time between the first row and the last; of a single row, what it logged."""
    timed = rows[run.rows.has(metric_names.HOURS)[rows]]
    if len(timed) < 2:
        return next(iter(_values(run, rows, metric_names.SAMPLES_PER_SECOND)), None)
    first, last = timed[0], timed[-1]
    # From the first row: what comes before it is start-up.
    all_hours = run.rows.values(metric_names.HOURS)
    all_samples = run.rows.values(metric_names.SAMPLES_SEEN)
    hours = float(all_hours[last] - all_hours[first])
    samples = float(all_samples[last] - all_samples[first])
    # A clock that was set back, or rows that a restart wrote again: no throughput is better than a
    # negative one.
    if hours <= 0 or samples <= 0:
        return None
    return samples / (hours * 3600)


def _phase_seconds(run: Run, rows: Indices) -> dict[str, float]:
    """Means over the rows that have all phases that the run measures: those of one step add up."""
    measured = {}
    for metric in PHASES:
        values = run.rows.values(metric)[rows]
        if np.isfinite(values).any():
            measured[metric] = values
    if not measured:
        return {}
    # Only rows with all of them: a sum of phases from different steps is the time of no step.
    is_complete = np.isfinite(np.stack(list(measured.values()))).all(axis=0)
    if not is_complete.any():
        return {}
    means = {}
    for metric, values in measured.items():
        means[metric] = statistics.fmean(values[is_complete].tolist())
    # The reduction runs inside the last backward, and is timed twice.
    if metric_names.SYNC_SECONDS in means and metric_names.FORWARD_BACKWARD_SECONDS in means:
        means[metric_names.FORWARD_BACKWARD_SECONDS] -= means[metric_names.SYNC_SECONDS]
    return {PHASES[metric]: seconds for metric, seconds in means.items()}


def _values(run: Run, rows: Indices, metric: str) -> list[float]:
    """Those that are finite."""
    values: list[float] = finite(run.rows.values(metric)[rows]).tolist()
    return values


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def _relative_error(values: Sequence[float]) -> float:
    """Two standard errors of the mean, as a share of it."""
    mean = _mean(values)
    # Of two values a deviation says next to nothing.
    if len(values) < 3 or not mean:
        return 0.0
    return 2 * statistics.stdev(values) / math.sqrt(len(values)) / mean


def _p95(values: Sequence[float]) -> float | None:
    if len(values) < FEWEST_FOR_P95:
        return None
    # `inclusive`: within the values that were measured, never beyond the largest of them.
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
