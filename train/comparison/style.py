"""How pictures look: large type, colours that colour-blind readers can tell apart, and a second
sign for each.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

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
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same everywhere
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
class Look:
    """Of one set-up."""

    colour: str
    dash: Any
    marker: str
    width: float


def look(index: int, total: int, nested: bool = False) -> Look:
    """`nested`: the first is the widest, so that curves which are the same all stay visible."""
    place = index % len(COLOURS)
    dash = DASHES[(place + index // len(COLOURS)) % len(DASHES)]
    width = 1.5 + 3.0 * (total - 1 - index) / (total - 1) if nested and total > 1 else 1.8
    return Look(
        COLOURS[place], dash, MARKERS[(place + index // len(COLOURS)) % len(MARKERS)], width
    )


def wrapped(label: str) -> str:
    """In several lines where it is long, so that nothing of it is cut; a $ is no formula."""
    return "\n".join(textwrap.wrap(label.replace("$", r"\$"), LONGEST_LINE))


def limits(least: float, most: float, share: float = 0.1) -> tuple[float, float]:
    """Of an axis that does not begin at zero: over a share of the value at least, so that noise
    looks like noise.
    """
    middle, width = (least + most) / 2, max(1.15 * (most - least), share * most)
    return middle - width / 2, middle + width / 2


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Outside of the axes, where it hides nothing; in as many columns as fit, read row by row."""
    for columns in range(min(len(labels), MOST_COLUMNS), 0, -1):
        order = [
            index for column in range(columns) for index in range(column, len(labels), columns)
        ]
        legend = figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            handlelength=2.8,
            columnspacing=1.4,
        )
        if columns == 1 or legend.get_window_extent().width < 0.94 * figure.bbox.width:
            return
        legend.remove()
