"""Memory against throughput: one point for each run."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

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


@dataclass(frozen=True)
class _Point:
    """A run, or the mean over those of a set-up."""

    gib: float
    noise_gib: float
    samples_per_second: float


@dataclass(frozen=True)
class _Member:
    """A set-up on a line."""

    micro_batch: int
    mean: _Point


def memory_throughput(comparison: Comparison) -> Drawing | None:
    """None where memory or throughput is unknown, or where memory is not of one kind."""
    memory = comparison.memory
    if memory is None:
        return None
    points = [_points(costs, memory) for costs in comparison.costs]
    all_points = list(itertools.chain.from_iterable(points))
    if not all_points:
        return None
    unit = memory_unit(max(point.gib for point in all_points))
    figure = Figure(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
    axes = figure.subplots()
    handles = []
    labels = []
    for index, group in enumerate(comparison.groups):
        style = look(index, len(comparison.groups))
        handles.append(_draw_points(axes, points[index], style, unit))
        labels.append(wrapped(group.label))
    lines = _lines(comparison.groups, points)
    for index, (name, means) in enumerate(lines.items()):
        handles.append(_draw_line(axes, means, index, unit))
        labels.append(name)
    _set_limits(axes, all_points, memory, unit)
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


def _points(costs: Sequence[Cost], memory: Memory) -> list[_Point]:
    points = []
    for cost in costs:
        gib = memory.of(cost)
        if gib and cost.samples_per_second:
            noise = cost.noise_gib if memory.is_process else 0.0
            points.append(_Point(gib, noise, cost.samples_per_second))
    return points


def _draw_points(axes: Axes, points: Sequence[_Point], style: Look, unit: Unit) -> Line2D:
    """Returns the handle for the legend."""
    marks: dict[str, Any] = {
        "marker": style.marker,
        "color": style.colour,
        "ms": 8,
        "ls": "",
        "mec": "white",
        "mew": 0.8,
    }
    _plot(axes, points, unit, **marks, zorder=3)
    for point in points:
        if point.noise_gib:
            reach = [(point.gib - point.noise_gib) * unit.scale, point.gib * unit.scale]
            speed = [point.samples_per_second] * 2
            axes.plot(reach, speed, color=style.colour, lw=1.2, alpha=0.7, zorder=2.5)
    return Line2D([], [], **marks)


def _draw_line(axes: Axes, means: Sequence[_Point], index: int, unit: Unit) -> Line2D:
    """Returns the handle for the legend."""
    style: dict[str, Any] = {
        "color": GREYS[index % len(GREYS)],
        "ls": DASHES[index % len(DASHES)],
        "lw": 1.6,
        "marker": "|",
        "ms": 9,
    }
    _plot(axes, means, unit, **style, zorder=2)
    return Line2D([], [], **style)


def _plot(axes: Axes, points: Sequence[_Point], unit: Unit, **style: Any) -> None:
    memory = [point.gib * unit.scale for point in points]
    throughput = [point.samples_per_second for point in points]
    axes.plot(memory, throughput, **style)


def _set_limits(axes: Axes, points: Sequence[_Point], memory: Memory, unit: Unit) -> None:
    most = max(point.gib for point in points) * unit.scale
    if memory.is_process:
        # Mostly Python and torch: from zero, all runs would lie on each other.
        least = min(point.gib - point.noise_gib for point in points) * unit.scale
        axes.set_xlim(limits(least, most))
    else:
        axes.set_xlim(0, 1.08 * most)  # from zero, so that a ratio is seen as one
    axes.set_ylim(0, 1.08 * max(point.samples_per_second for point in points))
    axes.ticklabel_format(axis="x", useOffset=False)


def _lines(groups: Sequence[Group], points: Sequence[Sequence[_Point]]) -> dict[str, list[_Point]]:
    """{name: means of set-ups with the same mathematics and ranks}, of several each.

    From small micro-batches to large. The name is batch and ranks; where other mathematics have the
    same, also the first of its set-ups.
    """
    members: dict[tuple[str, str], list[_Member]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for group, of_group in zip(groups, points, strict=True):
        micro_batch = group.derived("micro_batch")
        if not of_group or micro_batch is None:  # batches cut by length have no one micro-batch
            continue
        ranks = counted(int(group.derived("world_size") or 1), "rank")
        name = f"batch {group.derived('effective_batch')}, {ranks}"
        key = (name, group.recipe)
        members.setdefault(key, []).append(_Member(int(micro_batch), _mean(of_group)))
        firsts.setdefault(key, group.label)
    # A line needs two set-ups.
    joined = {key: several for key, several in members.items() if len(several) > 1}
    count_of_name = Counter(name for name, _ in joined)
    lines = {}
    for key, several in joined.items():
        name, _ = key
        if count_of_name[name] > 1:  # other mathematics with the same batch and ranks
            name = f"{name}, as {wrapped(firsts[key])}"
        several.sort(key=lambda each: (each.micro_batch, each.mean.gib))
        lines[name] = [member.mean for member in several]
    return lines


def _mean(points: Sequence[_Point]) -> _Point:
    return _Point(
        gib=fmean(point.gib for point in points),
        noise_gib=0.0,
        samples_per_second=fmean(point.samples_per_second for point in points),
    )
