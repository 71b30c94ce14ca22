"""Where a step's time goes, and what its memory consists of: stacked bars, one for each set-up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from train import metric_names
from train.comparison.comparison import Comparison
from train.comparison.cost_parts import (
    Parts,
    is_process,
    memory_kind,
    memory_parts_gib,
    time_parts_ms,
)
from train.comparison.formatting import memory_unit
from train.comparison.plot_style import COLOURS, WIDTH_INCHES, Drawing, limits, wrapped

HATCHES = ("", "///", "...", "xxx")
PEAKS = {
    metric_names.FORWARD_BACKWARD_PEAK: ("forward + backward", "^"),
    metric_names.OPTIMIZER_PEAK: ("optimizer", "D"),
    metric_names.EVAL_PEAK: ("evaluation", "v"),
}
"""{metric: name and marker}. Peaks of phases do not add up: they are marks beside the bars."""
LEGEND: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "frameon": False,
    "handlelength": 1.6,
    "ncols": 2,
}


@dataclass(frozen=True)
class _Panel:
    draw: Callable[[Axes, Comparison], None]
    legend_inches: float
    caption: str


TIME_CAPTION = (
    " Phases are of the full steps that got a row; the diamond is the mean over all steps, "
    "ragged ones too."
)
PROCESS_CAPTION = (
    " The memory of the process does not begin at zero; lines reach over what it varies by "
    "within a run."
)


def costs(comparison: Comparison) -> Drawing | None:
    """Time above, memory below; what no run measured is missing."""
    panels = _panels(comparison)
    if not panels:
        return None
    labels = list(map(wrapped, comparison.labels))
    num_lines = sum(label.count("\n") + 1 for label in labels)
    # A bar is as high as its label needs, so that labels of several lines do not overlap.
    heights = [0.9 + 0.3 * num_lines + panel.legend_inches for panel in panels]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        panel.draw(axes, comparison)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top
        _add_legend(axes)
    caption = "Means over runs." + "".join(panel.caption for panel in panels)
    return Drawing(figure, caption)


def _panels(comparison: Comparison) -> list[_Panel]:
    """Those for which there are numbers."""
    panels = []
    if time_parts_ms(comparison):
        panels.append(_Panel(_draw_time, legend_inches=0.8, caption=TIME_CAPTION))
    if memory_parts_gib(comparison):
        panels.append(_Panel(_draw_memory, legend_inches=0.8, caption=""))
    if is_process(comparison):
        panels.append(_Panel(_draw_process, legend_inches=0.0, caption=PROCESS_CAPTION))
    return panels


def _add_legend(axes: Axes) -> None:
    """Bars first, then marks."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    # matplotlib lists lines first.
    entries = list(zip(handles, labels, strict=True))
    entries.sort(key=lambda entry: isinstance(entry[0], Line2D))
    axes.legend(*zip(*entries, strict=True), **LEGEND)


def _draw_time(axes: Axes, comparison: Comparison) -> None:
    _stack(axes, time_parts_ms(comparison), first_colour=0, scale=1.0)
    means = []
    for index in comparison.indices:
        seconds = comparison.cost(index, lambda cost: cost.step_seconds)
        # A mark, and no part of the bar: phases are of full steps, this mean is over all.
        means.append(1000 * seconds.mean if seconds else None)
    _mark(axes, means, "whole step", "D")
    axes.set_xlabel("time per step (ms)")
    axes.set_xlim(left=0)


def _draw_memory(axes: Axes, comparison: Comparison) -> None:
    """From zero, so that the lengths of bars can be compared."""
    parts = memory_parts_gib(comparison)
    # The unit from the tallest bar, so that all bars share one axis.
    totals = [sum(of_set_up) for of_set_up in zip(*parts.values(), strict=True)]
    unit = memory_unit(max(totals))
    # From the fifth colour on, so that weights do not look like the phases of data above.
    _stack(axes, parts, first_colour=4, scale=unit.scale)
    # Beside the middle of a bar, one below the other: equal peaks would hide each other.
    for position, (metric, (name, marker)) in enumerate(PEAKS.items()):
        peaks = []
        for index in comparison.indices:
            peak = comparison.peak(index, metric)
            peaks.append(unit.scale * peak.mean if peak else None)
        _mark(axes, peaks, f"peak of {name}", marker, 0.17 * (position - 1))
    kind = "of the model" if is_process(comparison) else f"peak, {memory_kind(comparison)}"
    axes.set_xlabel(f"memory ({unit.name}, {kind})")
    axes.set_xlim(left=0)


def _draw_process(axes: Axes, comparison: Comparison) -> None:
    """Points, which need no zero: from there all runs would look the same."""
    unit = memory_unit(max(cost.peak_gib or 0.0 for cost in comparison.all_costs))
    ends = []
    for index, costs in enumerate(comparison.costs):
        for cost in costs:
            peak = (cost.peak_gib or 0.0) * unit.scale
            least = peak - cost.noise_gib * unit.scale
            ends += [least, peak]
            axes.plot([least, peak], [index, index], color="#777777", lw=3, alpha=0.6)
            axes.plot([peak], [index], color="black", marker="o", ms=6, mec="white")
    axes.set_xlim(limits(min(ends), max(ends)))
    # Without an offset: "+1.2" in a corner of the axis is overlooked.
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(f"peak of the process, Python and torch included ({unit.name})")


def _stack(axes: Axes, parts: Parts, first_colour: int, scale: float) -> None:
    num_bars = len(next(iter(parts.values())))
    left = [0.0] * num_bars
    for index, (name, values) in enumerate(parts.items()):
        widths = [value * scale for value in values]
        axes.barh(
            range(num_bars),
            widths,
            0.62,
            left,
            color=COLOURS[(first_colour + index) % len(COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            ec="white",
            lw=0.6,
            label=name,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]


def _mark(
    axes: Axes, values: Sequence[float | None], label: str, marker: str, lower: float = 0.0
) -> None:
    """A mark on the bar of each set-up that has a value, or `lower` than its middle."""
    xs = []
    ys = []
    for index, value in enumerate(values):
        if value:
            xs.append(value)
            ys.append(index + lower)
    if xs:
        axes.plot(
            xs, ys, marker=marker, color="black", ls="", ms=6, mec="white", label=label, zorder=4
        )
