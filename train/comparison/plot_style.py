"""How pictures look: large type, colours that colour-blind readers can tell apart, and a second
sign for each.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), without their yellow, which is too pale for a line on white."""
DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (7, 1.5, 1.5, 1.5)),
    (0, (3, 1)),
    (0, (9, 2)),
    (0, (1, 2.5)),
)
MARKERS = "osD^vPX"
LONGEST_LINE = 28
"""Characters of a label."""
WIDTH_INCHES = 6.4
MOST_COLUMNS = 6
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 12,
    "axes.labelsize": 13,
    "axes.titlesize": 13,
    "legend.fontsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,  # inches
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Drawing:
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Look:
    """Of one set-up."""

    colour: str
    dash: Any
    marker: str
    width: float


def look(index: int, total: int, nested: bool = False) -> Look:
    """`nested`: the first is the widest, so that curves which are the same all stay visible."""
    colour = index % len(COLOURS)
    # With every round of colours, dashes and markers move on by one: no two set-ups of 49 look
    # alike.
    sign = colour + index // len(COLOURS)
    width = 1.8
    if nested and total > 1:
        width = 1.5 + 3.0 * (total - 1 - index) / (total - 1)
    return Look(
        colour=COLOURS[colour],
        dash=DASHES[sign % len(DASHES)],
        marker=MARKERS[sign % len(MARKERS)],
        width=width,
    )


def wrapped(label: str) -> str:
    """In several lines where it is long, so that nothing of it is cut; a $ is no formula."""
    # A label may be the name of a run, and matplotlib takes text between two $ for TeX.
    return "\n".join(textwrap.wrap(label.replace("$", r"\$"), LONGEST_LINE))


def limits(least: float, most: float, share: float = 0.1) -> tuple[float, float]:
    """Of an axis that does not begin at zero: over a share of the value at least, so that noise
    looks like noise.
    """
    middle = (least + most) / 2
    # 1.15: room at both ends, so that no point lies on the frame.
    width = max(1.15 * (most - least), share * most)
    return middle - width / 2, middle + width / 2


def log_scale(axes: Axes, least: float, most: float, digits: Sequence[int]) -> None:
    """On y, over a decade at least.

    `digits` have a label where powers of ten alone would be one label or two.
    """
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    # Within two decades powers of ten would give one label or two.
    if most < 200 * least:
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if most < 10 * least:
        # 12 and no 10: some room above and below
        axes.set_ylim((least * most / 12) ** 0.5, (least * most * 12) ** 0.5)


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Outside of the axes, where it hides nothing; in as many columns as fit, read row by row."""
    for num_columns in range(min(len(labels), MOST_COLUMNS), 0, -1):
        # matplotlib fills a legend column by column.
        order: list[int] = []
        for column in range(num_columns):
            order.extend(range(column, len(labels), num_columns))
        ordered_handles = [handles[index] for index in order]
        ordered_labels = [labels[index] for index in order]
        legend = figure.legend(
            ordered_handles,
            ordered_labels,
            loc="outside upper left",
            ncols=num_columns,
            frameon=False,
            handlelength=2.8,
            columnspacing=1.4,
        )
        # Its width is known only once it is laid out, so each number of columns is tried.
        if num_columns == 1 or legend.get_window_extent().width < 0.94 * figure.bbox.width:
            return
        legend.remove()
