"""Losses over the course of training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from train import metric_names
from train.comparison.agree import by_seed
from train.comparison.curve import common
from train.comparison.facts import Comparison
from train.comparison.figures import time_unit
from train.comparison.group import Group
from train.comparison.style import WIDTH_INCHES, Look, legend_above, look, wrapped

Points = Mapping[int, Sequence[float]]  # samples seen -> a value of each run
Pairs = Mapping[int, Sequence[tuple[float, float]]]
FEW = 30
"""Points of a line that are drawn as points too."""
LARGE, STRIP = (1, 2, 5), (1, 3)
"""Digits for which a log scale has a label, as many as there is room for."""


def loss(comparison: Comparison, x: str) -> tuple[Figure, str] | None:
    """The training loss, and below it how far each set-up is from the first, seed by seed."""
    groups = comparison.groups
    if not any(group.curves(metric_names.LOSS) for group in groups):
        return None
    pairs = [_both(groups[0], group) for group in groups[1:]]
    has_strip = any(pairs)
    figure = Figure(figsize=(WIDTH_INCHES, 5.8 if has_strip else 4.4), layout="constrained")
    heights = [2.6, 1] if has_strip else [1]
    above, *below = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    scale, label = _x_axis(groups, x)
    looks = [look(index, len(groups), comparison.same_mathematics) for index in range(len(groups))]
    for group, style in zip(groups, looks, strict=True):
        _line(
            above,
            group,
            {s: v.values for s, v in group.over_seeds(metric_names.LOSS).items()},
            style,
            x,
            scale,
        )
    _log_if_wide(above)
    above.set_ylabel("training loss")
    caption = (
        "Training loss of the step that got a row: the mean over seeds; bands reach from the "
        "least to the largest."
    )
    if has_strip:
        is_log = above.get_yscale() == "log"
        caption += (
            _distances(below[0], groups, pairs, looks, x, scale)
            if comparison.same_mathematics
            else _comparisons(below[0], groups, pairs, looks, x, scale, is_log)
        )
    (below or [above])[-1].set_xlabel(label)
    if x != "hours":
        above.xaxis.set_major_formatter(EngFormatter(sep=" "))
    legend_above(figure, *_entries(groups, looks))
    return figure, caption


def evaluation(comparison: Comparison) -> tuple[Figure, str] | None:
    """The evaluation loss against training time, each run thin, their mean thick, and
    the target.
    """
    groups, metric = comparison.groups, metric_names.EVAL_LOSS
    timed = [[_timed(run.at("hours"), run.curve(metric)) for run in group.runs] for group in groups]
    if not any(points for of_group in timed for points in of_group):
        return None
    longest = max(hours for of_group in timed for points in of_group for hours, _ in points)
    unit, scale = time_unit(longest)
    figure = Figure(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
    axes = figure.subplots()
    looks = [look(index, len(groups)) for index in range(len(groups))]
    for group, of_group, style in zip(groups, timed, looks, strict=True):
        for points in of_group if len(of_group) > 1 else ():
            axes.plot(
                [h * scale for h, _ in points],
                [v for _, v in points],
                color=style.colour,
                lw=0.8,
                alpha=0.45,
            )
        mean = {samples: value.mean for samples, value in group.over_seeds(metric).items()}
        points = _timed(group.x["hours"], mean)
        axes.plot(
            [h * scale for h, _ in points],
            [v for _, v in points],
            color=style.colour,
            ls=style.dash,
            marker=style.marker,
            ms=6,
            lw=2,
        )
    _log_if_wide(axes)
    handles, labels = _entries(groups, looks, with_marker=True)
    if comparison.target:
        axes.axhline(comparison.target.loss, color="#555555", lw=1.4, ls=(0, (4, 3)), zorder=1)
        handles.append(Line2D([], [], color="#555555", lw=1.4, ls=(0, (4, 3))))
        labels.append(f"target {comparison.target.loss:.4g}")
    axes.set_xlabel(f"training time ({unit}), evaluation not counted")
    axes.set_ylabel("evaluation loss")
    axes.set_xlim(left=0)
    legend_above(figure, handles, labels)
    return (
        figure,
        "Evaluation loss: thin lines are runs, thick ones their mean at the same samples seen.",
    )


def _timed(timed: Mapping[int, float], curve: Mapping[int, float]) -> list[tuple[float, float]]:
    hours = dict(timed)
    return [(hours[samples], value) for samples, value in curve.items() if samples in hours]


def _x_axis(groups: Sequence[Group], x: str) -> tuple[float, str]:
    if x != "hours":
        return 1.0, {"samples": "samples seen", "steps": "optimizer steps"}[x]
    unit, scale = time_unit(
        max((max(group.x[x].values(), default=0.0) for group in groups), default=0.0)
    )
    return scale, f"training time ({unit})"


def _line(axes: Axes, group: Group, points: Points, style: Look, x: str, scale: float) -> None:
    """The mean as a line, the range as a band."""
    of_samples = dict(group.x[x])
    places = [samples for samples in points if samples in of_samples]
    xs = [of_samples[samples] * scale for samples in places]
    means = [sum(points[samples]) / len(points[samples]) for samples in places]
    marker = style.marker if len(places) < FEW else None
    axes.plot(xs, means, color=style.colour, ls=style.dash, lw=style.width, marker=marker, ms=4.5)
    if any(len(points[samples]) > 1 for samples in places):
        least, most = [min(points[s]) for s in places], [max(points[s]) for s in places]
        axes.fill_between(xs, least, most, color=style.colour, alpha=0.16, lw=0)


def _both(first: Group, group: Group) -> Pairs:
    """{samples seen: (first's loss, the group's) of each shared seed}, where all seeds
    have both.
    """
    several = []
    ours, theirs = by_seed(group.runs), by_seed(first.runs)
    for seed in ours.keys() & theirs.keys():
        other, own = (
            theirs[seed][0].curve(metric_names.LOSS),
            ours[seed][0].curve(metric_names.LOSS),
        )
        places = common([other, own])
        both = zip(other.at(places).tolist(), own.at(places).tolist(), strict=True)
        several.append(dict(zip(places.tolist(), both, strict=True)))
    shared = sorted(set(several[0]).intersection(*several[1:])) if several else []
    return {samples: [one[samples] for one in several] for samples in shared}


def _comparisons(
    axes: Axes,
    groups: Sequence[Group],
    pairs: Sequence[Pairs],
    looks: Sequence[Look],
    x: str,
    scale: float,
    is_log_above: bool,
) -> str:
    """How far curves that may differ are apart, as one sees it above: on a log scale, a ratio.
    Returns the caption.
    """
    everything = [
        value for points in pairs for values in points.values() for both in values for value in both
    ]
    ratio, shown = is_log_above and min(everything) > 0, []
    for group, points, style in zip(groups[1:], pairs, looks[1:], strict=True):
        told = {
            samples: [own / other if ratio else own - other for other, own in values]
            for samples, values in points.items()
        }
        shown += [value for values in told.values() for value in values]
        _line(axes, group, told, style, x, scale)
    axes.axhline(1 if ratio else 0, color="#555555", lw=1)
    if ratio and max(shown) > 10 * min(shown):
        _log(axes, min(shown), max(shown), STRIP)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    word = "ratio" if ratio else "difference"
    axes.set_ylabel(f"{word}\nto the first")
    return f" Below: its {word} to that of {groups[0].label}, at the same samples seen and seed."


def _distances(
    axes: Axes,
    groups: Sequence[Group],
    pairs: Sequence[Pairs],
    looks: Sequence[Look],
    x: str,
    scale: float,
) -> str:
    """How far curves that should be the same are apart, on a log scale. Returns what the caption
    says of it.
    """
    largest = [
        {s: max(abs(own - other) for other, own in values) for s, values in points.items()}
        for points in pairs
    ]
    positive = [distance for points in largest for distance in points.values() if distance > 0]
    zeros = sum(value == 0 for points in largest for value in points.values())
    floor = min(positive, default=0.0) / 3
    if positive:
        _log(axes, floor if zeros else min(positive), max(positive), STRIP)
    else:
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
    for group, points, style in zip(groups[1:], largest, looks[1:], strict=True):
        _line(
            axes,
            group,
            {samples: [max(value, floor)] for samples, value in points.items()},
            style,
            x,
            scale,
        )
    axes.set_ylabel("|difference|\nto the first")
    at_zero = f" {zeros} points are 0 and drawn at the lower edge." if zeros and positive else ""
    return (
        f" Below: the largest distance over seeds from {groups[0].label}, at the same samples "
        f"seen.{at_zero}"
    )


def _log_if_wide(axes: Axes) -> None:
    """A log scale where values are positive and span more than a factor of ten."""
    values = [
        value
        for line in axes.get_lines()
        for value in map(float, np.asarray(line.get_ydata()))
        if value == value
    ]
    if not values or min(values) <= 0 or max(values) <= 10 * min(values):
        return
    _log(axes, min(values), max(values), LARGE)


def _log(axes: Axes, least: float, most: float, digits: Sequence[int]) -> None:
    """A log scale of a decade at least; `digits` have a label where powers of ten alone would be
    one label or two.
    """
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    if most < 200 * least:
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if most < 10 * least:
        axes.set_ylim((least * most / 12) ** 0.5, (least * most * 12) ** 0.5)


def _entries(
    groups: Sequence[Group], looks: Sequence[Look], with_marker: bool = False
) -> tuple[list[Line2D], list[str]]:
    handles = [
        Line2D(
            [],
            [],
            color=s.colour,
            ls=s.dash,
            lw=min(s.width, 3.5),
            marker=s.marker if with_marker else None,
            ms=6,
        )
        for s in looks
    ]
    return handles, [f"{wrapped(group.label)}{_of_seeds(group)}" for group in groups]


def _of_seeds(group: Group) -> str:
    return f" ({len(group.runs)} runs)" if len(group.runs) > 1 else ""
