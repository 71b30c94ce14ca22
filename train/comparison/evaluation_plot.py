"""The evaluation loss against training time, each run thin, their mean thick, and the target."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train import metric_names
from train.comparison.columns import Numbers
from train.comparison.comparison import Comparison
from train.comparison.curve import Curve
from train.comparison.formatting import time_unit
from train.comparison.plot_series import legend_handles, legend_labels, log_scale_if_wide
from train.comparison.plot_style import WIDTH_INCHES, Drawing, legend_above, look

CAPTION = "Evaluation loss: thin lines are runs, thick ones their mean at the same samples seen."


def evaluation(comparison: Comparison) -> Drawing | None:
    """None where no run has an evaluation at a known time."""
    groups = comparison.groups
    # The unit of time must be known before anything is drawn.
    # -1: below 0 h, which an evaluation at the start has.
    longest = -1.0
    for run in comparison.runs:
        hours, _ = _against_hours(run.x_axis("hours"), run.curve(metric_names.EVAL_LOSS))
        longest = max(longest, hours.max(initial=-1.0))
    if longest < 0:
        return None
    unit = time_unit(longest)
    figure = Figure(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
    axes = figure.subplots()
    looks = []
    for index, group in enumerate(groups):
        style = look(index, len(groups))
        looks.append(style)
        # Of one run the thin line would lie below its own mean.
        if len(group.runs) > 1:
            for run in group.runs:
                hours, losses = _against_hours(
                    run.x_axis("hours"), run.curve(metric_names.EVAL_LOSS)
                )
                axes.plot(hours * unit.scale, losses, color=style.colour, lw=0.8, alpha=0.45)
        # At the same samples seen, not at the same time: a slower run is further to the right.
        series = group.series(metric_names.EVAL_LOSS)
        if series:
            hours, losses = _against_hours(group.mean_x["hours"], series.mean)
            axes.plot(
                hours * unit.scale,
                losses,
                color=style.colour,
                ls=style.dash,
                marker=style.marker,
                ms=6,
                lw=2,
            )
    log_scale_if_wide(axes)  # by the losses alone: the target is drawn below
    handles = legend_handles(looks, with_markers=True)
    labels = legend_labels(groups)
    if comparison.target:
        loss = comparison.target.loss
        axes.axhline(loss, color="#555555", lw=1.4, ls=(0, (4, 3)), zorder=1)
        handles.append(Line2D([], [], color="#555555", lw=1.4, ls=(0, (4, 3))))
        labels.append(f"target {loss:.4g}")
    axes.set_xlabel(f"training time ({unit.name}), evaluation not counted")
    axes.set_ylabel("evaluation loss")
    axes.set_xlim(left=0)  # the start of training
    legend_above(figure, handles, labels)
    return Drawing(figure, CAPTION)


def _against_hours(hours: Curve, losses: Curve) -> tuple[Numbers, Numbers]:
    """(hours, losses), where both are known."""
    is_timed = np.isin(losses.samples, hours.samples)
    return hours.at(losses.samples[is_timed]), losses.heights[is_timed]
