"""The pictures of a comparison: which there are, and what stands below them.

matplotlib is imported here when it is needed, and only by the modules that this one imports.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.comparison.comparison import Comparison
from train.errors import UserError

if TYPE_CHECKING:
    from train.comparison.plot_style import Drawing


class NoMatplotlib(UserError):
    """Pictures were asked for, and matplotlib is not installed; the message says what to type."""


@dataclass(frozen=True)
class Picture:
    path: Path
    title: str
    caption: str


def draw(comparison: Comparison, folder: Path, x: str) -> list[Picture]:
    """PNG files in `folder`, those for which the runs have the numbers.

    `x`: samples, steps or hours. Raises NoMatplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise NoMatplotlib(
            f"compare: no pictures without matplotlib\n  got:  {error}\n"
            '  Run:  python -m pip install "matplotlib>=3.9"   (or omit --out)'
        ) from error
    # Only now: these modules import matplotlib.
    from train.comparison.plot_style import RC

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    # In a context: a program that imports this keeps its own style.
    with mpl.rc_context(RC):
        for name, title, drawing in _drawings(comparison, x):
            path = folder / f"{name}.png"
            # That of an earlier comparison, which may have had what this one lacks.
            path.unlink(missing_ok=True)
            if drawing:
                # Before the next is drawn: a figure is freed once it is saved.
                drawing.figure.savefig(path)
                pictures.append(Picture(path, title, drawing.caption))
    return pictures


def _drawings(comparison: Comparison, x: str) -> Iterator[tuple[str, str, "Drawing | None"]]:
    """(name of the file, title, what is drawn), one after the other: a figure takes megabytes."""
    from train.comparison.cost_plot import costs
    from train.comparison.evaluation_plot import evaluation
    from train.comparison.loss_plot import loss
    from train.comparison.memory_plot import memory_throughput

    yield "loss", "Training loss", loss(comparison, x)
    yield "evaluation", "Evaluation loss against training time", evaluation(comparison)
    yield "memory_throughput", "Memory against throughput", memory_throughput(comparison)
    yield "costs", "Where a step's time goes, and the memory", costs(comparison)
