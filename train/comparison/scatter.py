"""Memory against throughput: one point for each run."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from train.comparison.cost import Cost
from train.comparison.judge import Comparison
from train.comparison.style import WIDTH_INCHES, legend_above, look, short
from train.errors import counted

GREYS = ("#777777", "#777777", "#777777", "#aaaaaa", "#aaaaaa", "#aaaaaa")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def memory_throughput(comparison: Comparison) -> tuple[Figure, str] | None:
    """None where memory or throughput is unknown, or where memory is not of one kind."""
    known = [[cost for cost in costs if cost.peak_gib and cost.samples_per_second] for costs in comparison.costs]
    kinds = {cost.memory_kind for costs in known for cost in costs}
    if len(kinds) != 1:
        return None
    figure = Figure(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
    axes = figure.subplots()
    handles: list[Any] = []
    labels: list[str] = []
    for index, (group, costs) in enumerate(zip(comparison.groups, known, strict=True)):
        style = look(index, len(comparison.groups))
        drawn: dict[str, Any] = {
            "marker": style.marker,
            "color": style.colour,
            "ms": 8,
            "ls": "",
            "mec": "white",
            "mew": 0.8,
        }
        axes.plot([_x(cost) for cost in costs], [_y(cost) for cost in costs], **drawn, zorder=3)
        handles.append(Line2D([], [], **drawn))
        labels.append(short(group.label))
    joined = _joined(comparison, known)
    for index, (name, means) in enumerate(joined.items()):
        drawn = {
            "color": GREYS[index % len(GREYS)],
            "ls": DASHES[index % len(DASHES)],
            "lw": 1.6,
            "marker": "|",
            "ms": 9,
        }
        axes.plot([x for x, _ in means], [y for _, y in means], **drawn, zorder=2)
        handles.append(Line2D([], [], **drawn))
        labels.append(name)
    _limits(axes, [cost for costs in known for cost in costs])
    axes.set_xlabel(f"peak memory (GiB, {kinds.pop()}, largest rank)")
    axes.set_ylabel("throughput (samples/s)")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    legend_above(figure, handles, labels)
    told = (
        " Lines join the means of set-ups with the same mathematics and ranks, from small micro-batches to large."
        if joined
        else ""
    )
    return figure, f"Each point is a run; up and to the left is better.{told}"


def _joined(comparison: Comparison, known: Sequence[Sequence[Cost]]) -> dict[str, list[tuple[float, float]]]:
    """{name: means of set-ups with the same mathematics and ranks, from small micro-batches to large}, of several each.

    The name is batch and ranks; where other mathematics have the same, also the first of its set-ups.
    """
    means: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for group, costs in zip(comparison.groups, known, strict=True):
        micro = group.of_derived("micro_batch")
        if costs and micro is not None:  # by length, micro-batches differ
            mean = (int(micro), fmean(map(_x, costs)), fmean(map(_y, costs)))
            ranks = counted(int(group.of_derived("world_size") or 1), "rank")
            key = f"batch {group.of_derived('effective_batch')}, {ranks}", group.recipe
            means.setdefault(key, []).append(mean)
            firsts.setdefault(key, group.label)
    lines = {key: [point[1:] for point in sorted(several)] for key, several in means.items() if len(several) > 1}
    shared = Counter(name for name, _ in lines)
    return {
        key[0] if shared[key[0]] == 1 else f"{key[0]}, as {short(firsts[key])}": points for key, points in lines.items()
    }


def _limits(axes: Axes, costs: Sequence[Cost]) -> None:
    """Throughput from zero; memory over a tenth of its value at least, so that noise does not look like a gain."""
    xs = [_x(cost) for cost in costs]
    middle, width = (min(xs) + max(xs)) / 2, max(1.15 * (max(xs) - min(xs)), 0.1 * max(xs))
    axes.set_xlim(middle - width / 2, middle + width / 2)
    axes.set_ylim(0, 1.08 * max(_y(cost) for cost in costs))
    axes.ticklabel_format(axis="x", useOffset=False)


def _x(cost: Cost) -> float:
    assert cost.peak_gib is not None
    return cost.peak_gib


def _y(cost: Cost) -> float:
    assert cost.samples_per_second is not None
    return cost.samples_per_second
