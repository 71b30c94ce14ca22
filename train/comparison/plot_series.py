"""What the pictures of losses share: lines over an axis of training, and their legend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from train.comparison.curve import Series
from train.comparison.formatting import time_unit
from train.comparison.group import Group
from train.comparison.plot_style import Look, log_scale, wrapped

FEW = 30
"""Points of a line that are drawn as points too."""
DIGITS = (1, 2, 5)
"""For which a log scale has a label, as many as there is room for."""


@dataclass(frozen=True)
class XAxis:
    x: str
    """`samples`, `steps` or `hours`, of training."""
    label: str
    scale: float = 1.0


def x_axis_of(groups: Sequence[Group], x: str) -> XAxis:
    if x == "samples":
        return XAxis(x, "samples seen")
    if x == "steps":
        return XAxis(x, "optimizer steps")
    # One unit for all set-ups, that of the longest run.
    longest = max(group.mean_x[x].heights.max(initial=0.0) for group in groups)
    unit = time_unit(longest)
    return XAxis(x, f"training time ({unit.name})", unit.scale)


def draw_series(axes: Axes, series: Series, group: Group, style: Look, x_axis: XAxis) -> None:
    """The mean over curves as a line, their range as a band."""
    xs = group.mean_x[x_axis.x]
    # Rows that do not know their training time have no place on an axis of hours.
    is_drawn = np.isin(series.samples, xs.samples)
    if not is_drawn.any():
        return
    heights = series.heights[is_drawn]
    positions = xs.at(series.samples[is_drawn]) * x_axis.scale
    axes.plot(
        positions,
        heights.mean(axis=1),
        color=style.colour,
        ls=style.dash,
        lw=style.width,
        # Many markers would hide the line.
        marker=style.marker if len(positions) < FEW else None,
        ms=4.5,
    )
    # With one curve a band has no width.
    if heights.shape[1] > 1:
        least = heights.min(axis=1)
        most = heights.max(axis=1)
        axes.fill_between(positions, least, most, color=style.colour, alpha=0.16, lw=0)


def log_scale_if_wide(axes: Axes) -> None:
    """Where values are positive and span more than a factor of ten."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    values = np.concatenate([np.empty(0), *lines])
    # Of all lines so far. NaN: what was not finite leaves a gap, and decides nothing.
    values = values[~np.isnan(values)]
    if len(values) and 0 < 10 * values.min() < values.max():
        log_scale(axes, values.min(), values.max(), DIGITS)


def legend_handles(looks: Sequence[Look], with_markers: bool = False) -> list[Line2D]:
    """Not the lines themselves: those that lie below others are too thick for a legend."""
    handles = []
    for style in looks:
        handles.append(
            Line2D(
                [],
                [],
                color=style.colour,
                ls=style.dash,
                lw=min(style.width, 3.5),
                marker=style.marker if with_markers else None,
                ms=6,
            )
        )
    return handles


def legend_labels(groups: Sequence[Group]) -> list[str]:
    labels = []
    for group in groups:
        of_runs = f" ({len(group.runs)} runs)" if len(group.runs) > 1 else ""
        labels.append(wrapped(group.label) + of_runs)
    return labels
