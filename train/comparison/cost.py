"""What a run cost, from its rows. Nothing is estimated: what a run did not measure is None or
absent. Pure.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train import metric_names
from train.comparison.run import Run, finite

Places = NDArray[np.int64]  # of rows

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


@dataclass(frozen=True)
class Cost:
    """The first of several rows is left out of the times of a step: it holds the start-up of
    kernels and caches.
    """

    memory_kind: str | None
    peak_gib: float | None
    # of the peak, as far as full steps show it: of a process from row to row, of an allocator none
    noise_gib: float
    # what a CPU run saves for the backward pass; a GPU's peak holds them
    activations_gib: float | None
    peaks_gib: dict[str, float]  # every memory/*_gib of the run: its largest value
    samples_per_second: float | None
    step_seconds: float | None  # mean over rows
    step_p50_seconds: float | None
    step_p95_seconds: float | None
    # of a full step, by name; the sync taken out of forward + backward
    phase_seconds: dict[str, float]
    hours: float | None  # of training, up to the last row
    mfu: float | None  # mean over rows: a share of the devices' peak
    # two standard errors of the mean of step_seconds, as a share of it; 0 where there are few rows
    step_error: float
    cpu_wait: float | None  # mean over rows: the share of the time in which a rank had no processor

    @property
    def was_disturbed(self) -> bool:
        return self.cpu_wait is not None and self.cpu_wait > BUSY

    @property
    def shares(self) -> dict[str, float]:
        """Of the phases in their sum."""
        total = sum(self.phase_seconds.values())
        return (
            {name: seconds / total for name, seconds in self.phase_seconds.items()}
            if total > 0
            else {}
        )


@dataclass(frozen=True)
class Memory:
    """What stands for the memory of all runs of a comparison."""

    name: str
    of: Callable[[Cost], float | None]
    """GiB."""
    is_process: bool
    """Mostly Python and torch, and never the same twice."""


def memory_of(costs: Iterable[Cost]) -> Memory | None:
    """Activations where all runs counted them on a CPU, else the peak; None where not all have the
    same kind.
    """
    known = list(costs)
    kinds = {cost.memory_kind for cost in known}
    if kinds == {PROCESS} and all(cost.activations_gib for cost in known):
        return Memory(ACTIVATIONS, lambda cost: cost.activations_gib, is_process=False)
    if len(kinds) != 1 or None in kinds:
        return None
    kind = kinds.pop()
    return Memory(f"peak memory ({kind})", lambda cost: cost.peak_gib, is_process=kind == PROCESS)


def cost_of(run: Run) -> Cost:
    rows = run.train_rows
    later = rows[1:] if len(rows) > 1 else rows
    full = later[run.are_full[later]]
    sizes = [
        metric for metric in run.metrics if metric.startswith("memory/") and metric.endswith("_gib")
    ]
    peaks = {metric: max(values) for metric in sizes if (values := _of(run, rows, metric))}
    kind = next((metric for metric in KINDS if metric in peaks), None)
    steps = _of(run, later, metric_names.STEP_SECONDS)
    waits = _of(run, later, metric_names.CPU_WAIT)
    is_process = kind == metric_names.PEAK_RSS
    return Cost(
        memory_kind=KINDS[kind] if kind else None,
        peak_gib=peaks[kind] if kind else None,
        noise_gib=_range(_of(run, full, metric_names.PEAK_RSS)) if is_process else 0.0,
        activations_gib=peaks.get(metric_names.ACTIVATIONS) if is_process else None,
        peaks_gib=peaks,
        samples_per_second=_throughput(run, rows),
        step_seconds=statistics.fmean(steps) if steps else None,
        step_p50_seconds=statistics.median(steps) if steps else None,
        step_p95_seconds=_p95(steps),
        phase_seconds=_phases(run, full),
        hours=max(_of(run, rows, metric_names.HOURS), default=None),
        mfu=statistics.fmean(used) if (used := _of(run, later, metric_names.MFU)) else None,
        step_error=_error(steps),
        cpu_wait=statistics.fmean(waits) if waits else None,
    )


def _throughput(run: Run, rows: Places) -> float | None:
    """Samples over time between the first row and the last; of a lone row, what it says itself."""
    timed = rows[run.rows.have(metric_names.HOURS)[rows]]
    if len(timed) > 1:
        ends = timed[[0, -1]]
        hours = float(np.diff(run.rows.values(metric_names.HOURS)[ends])[0])
        samples = float(np.diff(run.rows.values(metric_names.SAMPLES_SEEN)[ends])[0])
        return samples / (hours * 3600) if hours > 0 and samples > 0 else None
    return next(iter(_of(run, rows, metric_names.SAMPLES_PER_SECOND)), None)


def _phases(run: Run, rows: Places) -> dict[str, float]:
    """Means over the rows that have all phases that the run measures: those of one step add up."""
    values = {metric: run.rows.values(metric)[rows] for metric in PHASES}
    measured = {metric: each for metric, each in values.items() if np.isfinite(each).any()}
    full = np.all([np.isfinite(each) for each in measured.values()], axis=0)
    if not measured or not full.any():
        return {}
    means = {metric: statistics.fmean(each[full].tolist()) for metric, each in measured.items()}
    if metric_names.SYNC_SECONDS in means and metric_names.FORWARD_BACKWARD_SECONDS in means:
        means[metric_names.FORWARD_BACKWARD_SECONDS] -= means[metric_names.SYNC_SECONDS]
    return {PHASES[metric]: seconds for metric, seconds in means.items()}


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def _error(values: Sequence[float]) -> float:
    mean = statistics.fmean(values) if values else 0.0
    if len(values) < 3 or not mean:
        return 0.0
    return 2 * statistics.stdev(values) / math.sqrt(len(values)) / mean


def _p95(values: Sequence[float]) -> float | None:
    return (
        statistics.quantiles(values, n=20, method="inclusive")[-1]
        if len(values) >= FEWEST_FOR_P95
        else None
    )


def _of(run: Run, rows: Places, metric: str) -> list[float]:
    found: list[float] = finite(run.rows.values(metric)[rows]).tolist()
    return found
