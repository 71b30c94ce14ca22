"""Where a step's time goes, and what its memory consists of: stacked bars, one for each set-up."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from train import metric_names
from train.comparison.cost import PHASES, PROCESS
from train.comparison.facts import Comparison
from train.comparison.figures import size_unit
from train.comparison.group import Spread
from train.comparison.style import COLOURS, WIDTH_INCHES, limits, wrapped

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
    """Time above, memory below; what no run measured is missing."""
    panels = [
        panel
        for panel, is_known in (
            (_draw_time, bool(_time(comparison))),
            (_draw_memory, bool(_memory(comparison))),
            (_draw_process, _is_process(comparison)),
        )
        if is_known
    ]
    if not panels:
        return None
    rows = len(comparison.groups)
    labels = [wrapped(group.label) for group in comparison.groups]
    heights = [
        0.9
        + 0.3 * sum(label.count("\n") + 1 for label in labels)
        + (0.8 if p is not _draw_process else 0.0)
        for p in panels
    ]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, draw in zip(drawn, panels, strict=True):
        draw(axes, comparison)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(rows), labels)
        axes.set_ylim(rows - 0.5, -0.5)  # the first on top
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            bars_first = sorted(
                zip(handles, names, strict=True), key=lambda entry: isinstance(entry[0], Line2D)
            )
            axes.legend(*zip(*bars_first, strict=True), **LEGEND)
    of_steps = (
        " Phases are of the full steps that got a row; the diamond is the mean over all steps, "
        "ragged ones too."
    )
    of_process = (
        " The memory of the process does not begin at zero; lines reach over what it varies by "
        "within a run."
    )
    caption = "Means over runs."
    if _draw_time in panels:
        caption += of_steps
    if _draw_process in panels:
        caption += of_process
    return figure, caption


def _draw_time(axes: Axes, comparison: Comparison) -> None:
    _stack(axes, _time(comparison), 0)
    _mark_steps(axes, comparison)
    axes.set_xlabel("time per step (ms)")
    axes.set_xlim(left=0)


def _draw_memory(axes: Axes, comparison: Comparison) -> None:
    """From zero: a bar's length is what it says."""
    parts = _memory(comparison)
    unit, scale = size_unit(max(sum(of_set_up) for of_set_up in zip(*parts.values(), strict=True)))
    _stack(axes, {name: [scale * gib for gib in values] for name, values in parts.items()}, 4)
    _mark_peaks(axes, comparison, scale)
    kind = "of the model" if _is_process(comparison) else f"peak, {_kind(comparison)}"
    axes.set_xlabel(f"memory ({unit}, {kind})")
    axes.set_xlim(left=0)


def _draw_process(axes: Axes, comparison: Comparison) -> None:
    """Points, which need no zero."""
    runs = [
        (cost.peak_gib or 0.0, cost.noise_gib, i)
        for i, costs in enumerate(comparison.costs)
        for cost in costs
    ]
    unit, scale = size_unit(max(peak for peak, _, _ in runs))
    for peak, noise, index in runs:
        axes.plot(
            [scale * (peak - noise), scale * peak], [index, index], color="#777777", lw=3, alpha=0.6
        )
        axes.plot([scale * peak], [index], color="black", marker="o", ms=6, mec="white")
    axes.set_xlim(
        limits(min(p - n for p, n, _ in runs) * scale, max(p for p, _, _ in runs) * scale)
    )
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(f"peak of the process, Python and torch included ({unit})")


def _kind(comparison: Comparison) -> str | None:
    """Of the peak, where all runs have the same."""
    kinds = {cost.memory_kind for costs in comparison.costs for cost in costs}
    return kinds.pop() if len(kinds) == 1 else None


def _is_process(comparison: Comparison) -> bool:
    return _kind(comparison) == PROCESS


def _stack(axes: Axes, parts: Parts, first_colour: int) -> None:
    left = [0.0] * len(next(iter(parts.values())))
    for index, (name, values) in enumerate(parts.items()):
        colour, hatch = (
            COLOURS[(first_colour + index) % len(COLOURS)],
            HATCHES[index % len(HATCHES)],
        )
        axes.barh(
            range(len(values)),
            values,
            0.62,
            left,
            color=colour,
            hatch=hatch,
            ec="white",
            lw=0.6,
            label=name,
        )
        left = [a + b for a, b in zip(left, values, strict=True)]


def _time(comparison: Comparison) -> Parts:
    """Milliseconds of each phase; empty where no run measures them."""
    parts = {
        name: [_milliseconds(comparison, i, name) for i in _indices(comparison)]
        for name in PHASES.values()
    }
    return {name: values for name, values in parts.items() if any(values)}


def _milliseconds(comparison: Comparison, index: int, phase: str) -> float:
    return 1000 * _mean(comparison.cost(index, lambda cost: cost.phase_seconds.get(phase)))


def _memory(comparison: Comparison) -> Parts:
    """Of a GPU, what the peak consists of, as far as it was measured, and what the allocator
    reserves beyond. Of a process, what of it is the model's: the rest is another picture's.
    """
    if _kind(comparison) is None:
        return {}
    metrics = {
        "weights": metric_names.WEIGHTS,
        "gradients": metric_names.GRADIENTS,
        "optimizer": metric_names.OPTIMIZER_STATE,
    }
    if _is_process(comparison):
        metrics["activations"] = metric_names.ACTIVATIONS
    known = {
        name: [_mean(comparison.cost(i, _peak(metric))) for i in _indices(comparison)]
        for name, metric in metrics.items()
    }
    parts = known if _is_process(comparison) else known | _rest_of_peak(comparison, known)
    return {name: values for name, values in parts.items() if any(values)}


def _rest_of_peak(comparison: Comparison, known: Parts) -> Parts:
    peaks = [_mean(comparison.cost(i, lambda cost: cost.peak_gib)) for i in _indices(comparison)]
    reserved = [
        _mean(comparison.cost(i, _peak(metric_names.PEAK_RESERVED))) for i in _indices(comparison)
    ]
    rest = [
        max(0.0, peak - sum(parts)) for peak, *parts in zip(peaks, *known.values(), strict=True)
    ]
    beyond = [
        max(0.0, above - peak) if above else 0.0
        for above, peak in zip(reserved, peaks, strict=True)
    ]
    return {"all else": rest, "reserved beyond": beyond}


def _mark_steps(axes: Axes, comparison: Comparison) -> None:
    means = [comparison.cost(i, lambda cost: cost.step_seconds) for i in _indices(comparison)]
    _marks(axes, [1000 * mean.mean if mean else None for mean in means], "whole step", "D")


def _mark_peaks(axes: Axes, comparison: Comparison, scale: float) -> None:
    for place, (metric, (name, marker)) in enumerate(MARKS.items()):
        peaks = [comparison.cost(i, _peak(metric)) for i in _indices(comparison)]
        _marks(
            axes,
            [scale * peak.mean if peak else None for peak in peaks],
            f"peak of {name}",
            marker,
            0.17 * (place - 1),
        )


def _marks(
    axes: Axes, values: Sequence[float | None], label: str, marker: str, lower: float = 0.0
) -> None:
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
