"""The training loss, and below it how far each set-up is from the first."""

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from train import metric_names
from train.comparison.comparison import Comparison
from train.comparison.difference_plot import Strip, draw_comparisons, draw_distances, pair_of
from train.comparison.plot_series import (
    draw_series,
    legend_handles,
    legend_labels,
    log_scale_if_wide,
    x_axis_of,
)
from train.comparison.plot_style import WIDTH_INCHES, Drawing, legend_above, look

CAPTION = (
    "Training loss of the step that got a row: the mean over seeds; bands reach from the "
    "least to the largest."
)


def loss(comparison: Comparison, x: str) -> Drawing | None:
    """`x`: samples, steps or hours. None where no run has a training loss."""
    groups = comparison.groups
    if not any(group.curves(metric_names.LOSS) for group in groups):
        return None
    # Against the first: it is the reference of all tables too.
    pairs = [pair_of(groups[0], group) for group in groups[1:]]
    has_differences = any(len(pair.samples) for pair in pairs)
    height = 5.8 if has_differences else 4.4
    ratios = [2.6, 1] if has_differences else [1]
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    above = grid[0, 0]
    lowest = grid[-1, 0]

    # Above: the losses themselves. Where all have the same mathematics, their lines lie on each
    # other, and are drawn from wide to thin.
    x_axis = x_axis_of(groups, x)
    looks = []
    for index, group in enumerate(groups):
        looks.append(look(index, len(groups), nested=comparison.same_mathematics))
        series = group.series(metric_names.LOSS)
        if series:
            draw_series(above, series, group, looks[index], x_axis)
    # After the lines are there: it looks at their values.
    log_scale_if_wide(above)
    above.set_ylabel("training loss")
    caption = CAPTION
    # Below: what cannot be seen above.
    if has_differences:
        strip = Strip(
            axes=lowest, first=groups[0], others=groups[1:], looks=looks[1:], x_axis=x_axis
        )
        if comparison.same_mathematics:
            caption += draw_distances(strip, pairs)
        else:
            caption += draw_comparisons(strip, pairs, is_log_above=above.get_yscale() == "log")
    lowest.set_xlabel(x_axis.label)
    if x != "hours":  # 10 k, and not 10000
        above.xaxis.set_major_formatter(EngFormatter(sep=" "))
    legend_above(figure, legend_handles(looks), legend_labels(groups))
    return Drawing(figure, caption)
