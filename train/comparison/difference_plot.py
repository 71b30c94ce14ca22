"""The lower part of the picture of losses: how far each set-up is from the first, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from train import metric_names
from train.comparison.columns import Numbers
from train.comparison.curve import Samples, Series, stack
from train.comparison.curve_distance import by_seed
from train.comparison.group import Group
from train.comparison.plot_series import XAxis, draw_series
from train.comparison.plot_style import Look, log_scale
from train.comparison.run import finite

DIGITS = (1, 3)
"""For which a log scale has a label: there is less room than above."""


@dataclass(frozen=True)
class Pair:
    """Losses of the first set-up and of another one, where all shared seeds have both."""

    samples: Samples
    first: Numbers
    """(samples, seeds)"""
    other: Numbers
    """(samples, seeds)"""


def pair_of(first: Group, other: Group) -> Pair:
    """Empty where no seed is shared."""
    first_runs = by_seed(first.runs)
    other_runs = by_seed(other.runs)
    # Only shared seeds: a difference between two seeds is luck.
    seeds = [seed for seed in first_runs if seed in other_runs]
    if not seeds:
        return Pair(np.empty(0, np.int64), np.empty((0, 0)), np.empty((0, 0)))
    # Of several runs of one seed, the first stands for all.
    curves = [first_runs[seed][0].curve(metric_names.LOSS) for seed in seeds]
    curves += [other_runs[seed][0].curve(metric_names.LOSS) for seed in seeds]
    # At samples that all of them have: each point is a difference of the same place.
    series = stack(curves)
    return Pair(series.samples, series.heights[:, : len(seeds)], series.heights[:, len(seeds) :])


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Where the differences are drawn, and how."""

    axes: Axes
    first: Group
    others: Sequence[Group]
    looks: Sequence[Look]
    """Of the others."""
    x_axis: XAxis

    def draw(self, pairs: Sequence[Pair], values: Sequence[Numbers]) -> None:
        """`values`: (samples, lines) of each pair; a band holds several lines."""
        for group, pair, heights, style in zip(self.others, pairs, values, self.looks, strict=True):
            series = Series(pair.samples, heights)
            draw_series(self.axes, series, group, style, self.x_axis)


def draw_distances(strip: Strip, pairs: Sequence[Pair]) -> str:
    """Max absolute difference of curves that should be the same, log scale. Returns the caption."""
    largest = []
    for pair in pairs:
        # (samples, seeds)
        differences = np.abs(pair.other - pair.first)
        largest.append(differences.max(axis=1, initial=0.0))
    all_distances = finite(np.concatenate(largest))
    positive = all_distances[all_distances > 0]
    num_zeros = int((all_distances == 0).sum())
    lower_edge = 0.0
    at_zero = ""
    if not len(positive):
        strip.axes.set_ylim(-1, 1)
        strip.axes.set_yticks([0])
    else:
        # A log scale has no zero: it is drawn below the smallest difference that there is.
        lower_edge = positive.min() / 3
        # Where nothing is 0 the axis needs no room below.
        least = lower_edge if num_zeros else positive.min()
        log_scale(strip.axes, least, positive.max(), DIGITS)
        if num_zeros:
            at_zero = f" {num_zeros} points are 0 and drawn at the lower edge."
    # One line for each pair: its largest distance over seeds.
    lines = [np.maximum(distances, lower_edge)[:, np.newaxis] for distances in largest]
    strip.draw(pairs, lines)
    strip.axes.set_ylabel("|difference|\nto the first")
    return (
        f" Below: the largest distance over seeds from {strip.first.label}, at the same samples "
        f"seen.{at_zero}"
    )


def draw_comparisons(strip: Strip, pairs: Sequence[Pair], is_log_above: bool) -> str:
    """Difference of curves that may differ; their ratio below a log scale. Returns the caption."""
    # Above, a log scale shows equal ratios as equal distances, a linear one equal differences.
    losses = np.concatenate([np.append(pair.first, pair.other) for pair in pairs])
    is_ratio = is_log_above and finite(losses).min(initial=np.inf) > 0
    values = []
    for pair in pairs:
        values.append(pair.other / pair.first if is_ratio else pair.other - pair.first)
    strip.draw(pairs, values)
    strip.axes.axhline(1 if is_ratio else 0, color="#555555", lw=1)
    drawn = finite(np.concatenate([differences.ravel() for differences in values]))
    # A ratio within a factor of ten reads better on a linear axis.
    if is_ratio and len(drawn) and drawn.max() > 10 * drawn.min():
        log_scale(strip.axes, drawn.min(), drawn.max(), DIGITS)
    else:
        strip.axes.ticklabel_format(axis="y", useOffset=False)
    word = "ratio" if is_ratio else "difference"
    strip.axes.set_ylabel(f"{word}\nto the first")
    return f" Below: its {word} to that of {strip.first.label}, at the same samples seen and seed."
