"""Where a step's time goes, and what its memory consists of: stacked bars, one for each set-up."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train import metric_names
from train.comparison.cost import PHASES
from train.comparison.group import Spread
from train.comparison.judge import Comparison
from train.comparison.style import COLOURS, WIDTH_INCHES, short

HATCHES = ("", "///", "...", "xxx")
MARKS = {
    metric_names.FORWARD_BACKWARD_PEAK: ("forward + backward", "^"),
    metric_names.OPTIMIZER_PEAK: ("optimizer", "D"),
    metric_names.EVAL_PEAK: ("evaluation", "v"),
}
"""Peaks of phases, which do not add up: marks beside the bars."""

LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "frameon": False,
    "handlelength": 1.6,
    "ncols": 2,
}

Parts = dict[str, list[float]]  # part -> of each set-up


def costs(comparison: Comparison) -> tuple[Figure, str] | None:
    """Time above, memory below; either may be missing."""
    time, (memory, kind) = _time(comparison), _memory(comparison)
    drawn = [panel for panel in (time and "time", memory and "memory") if panel]
    if not drawn:
        return None
    rows = len(comparison.groups)
    figure = Figure(figsize=(WIDTH_INCHES, len(drawn) * (1.9 + 0.36 * rows)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, panel in zip(panels, drawn, strict=True):
        _stack(axes, time if panel == "time" else memory, 0 if panel == "time" else 4)
        if panel == "time":
            _mark_steps(axes, comparison)
            axes.set_xlabel("time per step (ms)")
        else:
            _mark_peaks(axes, comparison)
            axes.set_xlabel(f"peak memory (GiB, {kind})")
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(rows), [short(group.label) for group in comparison.groups])
        axes.set_ylim(rows - 0.5, -0.5)  # the first on top
        handles, labels = axes.get_legend_handles_labels()
        bars_first = sorted(zip(handles, labels, strict=True), key=lambda entry: isinstance(entry[0], Line2D))
        axes.legend(*zip(*bars_first, strict=True), **LEGEND)
    of_steps = " Phases are of the full steps that got a row; the diamond is the mean over all steps, ragged ones too."
    return figure, "Means over runs." + (of_steps if time else "")


def _stack(axes: Axes, parts: Parts, first_colour: int) -> None:
    left = [0.0] * len(next(iter(parts.values())))
    for index, (name, values) in enumerate(parts.items()):
        colour, hatch = COLOURS[(first_colour + index) % len(COLOURS)], HATCHES[index % len(HATCHES)]
        axes.barh(range(len(values)), values, 0.62, left, color=colour, hatch=hatch, ec="white", lw=0.6, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]


def _time(comparison: Comparison) -> Parts:
    """Milliseconds of each phase; empty where no run measures them."""
    parts = {name: [_milliseconds(comparison, i, name) for i in _indices(comparison)] for name in PHASES.values()}
    return {name: values for name, values in parts.items() if any(values)}


def _milliseconds(comparison: Comparison, index: int, phase: str) -> float:
    return 1000 * _mean(comparison.cost(index, lambda cost: cost.phase_seconds.get(phase)))


def _memory(comparison: Comparison) -> tuple[Parts, str]:
    """What the peak consists of, as far as it was measured, and, on a GPU, what the allocator reserves beyond."""
    kinds = {cost.memory_kind for costs in comparison.costs for cost in costs} - {None}
    if len(kinds) != 1:
        return {}, ""
    peaks = [_mean(comparison.cost(i, lambda cost: cost.peak_gib)) for i in _indices(comparison)]
    known = {
        name: [_mean(comparison.cost(i, _peak(metric))) for i in _indices(comparison)]
        for name, metric in (
            ("weights", metric_names.WEIGHTS),
            ("gradients", metric_names.GRADIENTS),
            ("optimizer", metric_names.OPTIMIZER_STATE),
        )
    }
    reserved = [_mean(comparison.cost(i, _peak(metric_names.PEAK_RESERVED))) for i in _indices(comparison)]
    parts = known | {
        "all else": [max(0.0, peak - sum(parts)) for peak, *parts in zip(peaks, *known.values(), strict=True)],
        "reserved beyond": [
            max(0.0, above - peak) if above else 0.0 for above, peak in zip(reserved, peaks, strict=True)
        ],
    }
    return {name: values for name, values in parts.items() if any(values)}, str(kinds.pop())


def _mark_steps(axes: Axes, comparison: Comparison) -> None:
    means = [comparison.cost(i, lambda cost: cost.step_seconds) for i in _indices(comparison)]
    _marks(axes, [1000 * mean.mean if mean else None for mean in means], "whole step", "D")


def _mark_peaks(axes: Axes, comparison: Comparison) -> None:
    for place, (metric, (name, marker)) in enumerate(MARKS.items()):
        peaks = [comparison.cost(i, _peak(metric)) for i in _indices(comparison)]
        _marks(axes, [peak.mean if peak else None for peak in peaks], f"peak of {name}", marker, 0.17 * (place - 1))


def _marks(axes: Axes, values: Sequence[float | None], label: str, marker: str, lower: float = 0.0) -> None:
    known = [(value, index + lower) for index, value in enumerate(values) if value]
    if known:
        drawn: dict[str, Any] = {
            "marker": marker,
            "color": "black",
            "ls": "",
            "ms": 6,
            "mec": "white",
            "label": label,
            "zorder": 4,
        }
        axes.plot([value for value, _ in known], [index for _, index in known], **drawn)


def _peak(metric: str) -> Any:
    return lambda cost: cost.peaks_gib.get(metric)


def _mean(value: Spread | None) -> float:
    return value.mean if value else 0.0


def _indices(comparison: Comparison) -> range:
    return range(len(comparison.groups))
