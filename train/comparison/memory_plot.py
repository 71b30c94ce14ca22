"""Memory against throughput: one point for each run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from train.comparison.columns import Numbers
from train.comparison.comparison import Comparison
from train.comparison.cost import Cost, Memory
from train.comparison.formatting import Unit, memory_unit
from train.comparison.group import Group
from train.comparison.plot_style import (
    WIDTH_INCHES,
    Drawing,
    Look,
    legend_above,
    limits,
    look,
    wrapped,
)
from train.errors import counted

GREYS = ("#777777", "#777777", "#777777", "#aaaaaa", "#aaaaaa", "#aaaaaa")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Of the lines that join set-ups."""


@dataclass(frozen=True, kw_only=True)
class _Points:
    """One of each run; (runs,)"""

    gib: Numbers
    noise_gib: Numbers
    samples_per_second: Numbers

    @property
    def mean(self) -> tuple[float, float]:
        """(GiB, samples per second)"""
        return float(self.gib.mean()), float(self.samples_per_second.mean())


@dataclass(frozen=True)
class _Line:
    """Set-ups with the same mathematics and ranks, from small micro-batches to large."""

    name: str
    means: Sequence[tuple[float, float]]
    """(GiB, samples per second)"""


def memory_throughput(comparison: Comparison) -> Drawing | None:
    """None where memory or throughput is unknown, or where memory is not of one kind."""
    memory = comparison.memory
    if memory is None:
        return None
    # All runs at once, for one unit and one pair of limits.
    everything = _points(comparison.all_costs, memory)
    if not len(everything.gib):
        return None
    per_group = [_points(costs, memory) for costs in comparison.costs]
    unit = memory_unit(everything.gib.max())
    figure = Figure(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
    axes = figure.subplots()
    handles = []
    labels = []
    for index, points in enumerate(per_group):
        style = look(index, len(per_group))
        handles.append(_draw_points(axes, points, style, unit))
        labels.append(wrapped(comparison.labels[index]))
    lines = _lines(comparison.groups, per_group)
    for index, line in enumerate(lines):
        handles.append(_draw_line(axes, line, index, unit))
        labels.append(line.name)
    _set_limits(axes, everything, memory, unit)
    axes.set_xlabel(f"{memory.name}, largest rank ({unit.name})")
    axes.set_ylabel("throughput (samples/s)")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    legend_above(figure, handles, labels)
    caption = "Each point is a run; up and to the left is better."
    if memory.is_process:
        caption += " Thin lines: how far the peak varies within a run, which is the noise."
    if lines:
        caption += (
            " Lines join the means of set-ups with the same mathematics and ranks, from small "
            "micro-batches to large."
        )
    return Drawing(figure, caption)


def _points(costs: Sequence[Cost], memory: Memory) -> _Points:
    """Of the runs that have both memory and throughput."""
    rows = []
    for cost in costs:
        gib = memory.of(cost)
        if gib and cost.samples_per_second:
            # Of a GPU's allocator, and of activations, a peak is the same each time.
            noise = cost.noise_gib if memory.is_process else 0.0
            rows.append((gib, noise, cost.samples_per_second))
    # reshape: without rows the array would have one dimension, and no columns to take apart.
    columns = np.array(rows, float).reshape(-1, 3).T
    return _Points(gib=columns[0], noise_gib=columns[1], samples_per_second=columns[2])


def _draw_points(axes: Axes, points: _Points, style: Look, unit: Unit) -> Line2D:
    """Returns the handle for the legend."""
    marks: dict[str, Any] = {
        "marker": style.marker,
        "color": style.colour,
        "ms": 8,
        "ls": "",
        "mec": "white",
        "mew": 0.8,
    }
    memory = points.gib * unit.scale
    least = (points.gib - points.noise_gib) * unit.scale
    axes.plot(memory, points.samples_per_second, **marks, zorder=3)
    # A noise of 0 has no length.
    for index in np.flatnonzero(points.noise_gib):
        reach = [least[index], memory[index]]
        speed = [points.samples_per_second[index]] * 2
        axes.plot(reach, speed, color=style.colour, lw=1.2, alpha=0.7, zorder=2.5)
    return Line2D([], [], **marks)


def _draw_line(axes: Axes, line: _Line, index: int, unit: Unit) -> Line2D:
    """Returns the handle for the legend."""
    style: dict[str, Any] = {
        "color": GREYS[index % len(GREYS)],
        "ls": DASHES[index % len(DASHES)],
        "lw": 1.6,
        "marker": "|",
        "ms": 9,
    }
    gib, speed = np.array(line.means).T
    axes.plot(gib * unit.scale, speed, **style, zorder=2)
    return Line2D([], [], **style)


def _set_limits(axes: Axes, points: _Points, memory: Memory, unit: Unit) -> None:
    most = points.gib.max() * unit.scale
    if memory.is_process:
        # Mostly Python and torch: from zero, all runs would lie on each other.
        least = (points.gib - points.noise_gib).min() * unit.scale
        axes.set_xlim(limits(least, most))
    else:
        axes.set_xlim(0, 1.08 * most)  # from zero, so that a ratio is seen as one
    axes.set_ylim(0, 1.08 * points.samples_per_second.max())
    axes.ticklabel_format(axis="x", useOffset=False)


def _lines(groups: Sequence[Group], per_group: Sequence[_Points]) -> list[_Line]:
    """Of several set-ups each.

    The name is batch and ranks; where other mathematics have the same, also the first set-up.
    """
    members: dict[tuple[str, str], list[tuple[int, tuple[float, float]]]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for group, points in zip(groups, per_group, strict=True):
        micro_batch = group.derived("micro_batch")
        if not len(points.gib) or micro_batch is None:  # cut by length: no one micro-batch
            continue
        ranks = counted(int(group.derived("world_size") or 1), "rank")
        key = (f"batch {group.derived('effective_batch')}, {ranks}", group.recipe)
        members.setdefault(key, []).append((int(micro_batch), points.mean))
        firsts.setdefault(key, group.label)
    # A line needs two set-ups.
    joined = {key: several for key, several in members.items() if len(several) > 1}
    count_of_name = Counter(name for name, _ in joined)
    lines = []
    for key, several in joined.items():
        name, _ = key
        if count_of_name[name] > 1:
            name = f"{name}, as {wrapped(firsts[key])}"
        # By micro-batch: the line then goes from little memory to much.
        means = [mean for _, mean in sorted(several)]
        lines.append(_Line(name, means))
    return lines
