"""Memory against throughput: one point for each run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from train.comparison.cost import Cost, Memory
from train.comparison.facts import Comparison
from train.comparison.figures import size_unit
from train.comparison.style import WIDTH_INCHES, legend_above, limits, look, wrapped
from train.errors import counted

GREYS = ("#777777", "#777777", "#777777", "#aaaaaa", "#aaaaaa", "#aaaaaa")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def memory_throughput(comparison: Comparison) -> tuple[Figure, str] | None:
    """None where memory or throughput is unknown, or where memory is not of one kind."""
    memory = comparison.memory
    if memory is None:
        return None
    known = [_points(costs, memory) for costs in comparison.costs]
    everything = [point for points in known for point in points]
    if not everything:
        return None
    unit, scale = size_unit(max(point.gib for point in everything))
    figure = Figure(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
    axes = figure.subplots()
    handles: list[Any] = []
    labels: list[str] = []
    for index, (group, points) in enumerate(zip(comparison.groups, known, strict=True)):
        style = look(index, len(comparison.groups))
        drawn: dict[str, Any] = {
            "marker": style.marker,
            "color": style.colour,
            "ms": 8,
            "ls": "",
            "mec": "white",
            "mew": 0.8,
        }
        axes.plot(
            [scale * point.gib for point in points],
            [point.speed for point in points],
            **drawn,
            zorder=3,
        )
        for point in [point for point in points if point.noise]:
            reach = [scale * (point.gib - point.noise), scale * point.gib]
            axes.plot(reach, [point.speed] * 2, color=style.colour, lw=1.2, alpha=0.7, zorder=2.5)
        handles.append(Line2D([], [], **drawn))
        labels.append(wrapped(group.label))
    joined = _joined(comparison, known)
    for index, (name, means) in enumerate(joined.items()):
        drawn = {
            "color": GREYS[index % len(GREYS)],
            "ls": DASHES[index % len(DASHES)],
            "lw": 1.6,
            "marker": "|",
            "ms": 9,
        }
        axes.plot([scale * x for x, _ in means], [y for _, y in means], **drawn, zorder=2)
        handles.append(Line2D([], [], **drawn))
        labels.append(name)
    if memory.is_process:
        axes.set_xlim(
            limits(
                min(p.gib - p.noise for p in everything) * scale,
                max(p.gib for p in everything) * scale,
            )
        )
    else:
        axes.set_xlim(0, 1.08 * max(point.gib for point in everything) * scale)
    axes.set_ylim(0, 1.08 * max(point.speed for point in everything))
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_xlabel(f"{memory.name}, largest rank ({unit})")
    axes.set_ylabel("throughput (samples/s)")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    legend_above(figure, handles, labels)
    told = (
        " Lines join the means of set-ups with the same mathematics and ranks, from small "
        "micro-batches to large."
        if joined
        else ""
    )
    noise = (
        " Thin lines: how far the peak varies within a run, which is the noise."
        if memory.is_process
        else ""
    )
    return figure, f"Each point is a run; up and to the left is better.{noise}{told}"


@dataclass(frozen=True)
class _Point:
    """A run."""

    gib: float
    noise: float
    speed: float


def _points(costs: Sequence[Cost], memory: Memory) -> list[_Point]:
    found = []
    for cost in costs:
        gib, speed = memory.of(cost), cost.samples_per_second
        if gib and speed:
            found.append(_Point(gib, cost.noise_gib if memory.is_process else 0.0, speed))
    return found


def _joined(
    comparison: Comparison, known: Sequence[Sequence[_Point]]
) -> dict[str, list[tuple[float, float]]]:
    """{name: means of set-ups with the same mathematics and ranks, from small micro-batches to
    large}, of several each.

    The name is batch and ranks; where other mathematics have the same, also the first of its
    set-ups.
    """
    means: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for group, points in zip(comparison.groups, known, strict=True):
        micro = group.of_derived("micro_batch")
        if points and micro is not None:  # by length, micro-batches differ
            mean = (
                int(micro),
                fmean(point.gib for point in points),
                fmean(point.speed for point in points),
            )
            ranks = counted(int(group.of_derived("world_size") or 1), "rank")
            key = f"batch {group.of_derived('effective_batch')}, {ranks}", group.recipe
            means.setdefault(key, []).append(mean)
            firsts.setdefault(key, group.label)
    lines = {
        key: [point[1:] for point in sorted(several)]
        for key, several in means.items()
        if len(several) > 1
    }
    shared = Counter(name for name, _ in lines)
    return {
        key[0] if shared[key[0]] == 1 else f"{key[0]}, as {wrapped(firsts[key])}": points
        for key, points in lines.items()
    }
