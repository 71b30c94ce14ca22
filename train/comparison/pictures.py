"""The pictures of a comparison: which there are, and what stands below them. matplotlib stays
behind this module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.comparison.facts import Comparison
from train.errors import UserError


class NoMatplotlib(UserError):
    """Pictures were asked for, and matplotlib is not installed; the message says what to type."""


@dataclass(frozen=True)
class Picture:
    path: Path
    title: str
    caption: str


def draw(comparison: Comparison, folder: Path, x: str) -> list[Picture]:
    """PNG files in `folder`, those for which the runs have the numbers. `x`: samples, steps or
    hours.

    Raises NoMatplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise NoMatplotlib(
            f"compare: no pictures without matplotlib\n  got:  {error}\n"
            '  type: python -m pip install "matplotlib>=3.9"   (or leave --out away)'
        ) from error
    from train.comparison import bars, curves, scatter
    from train.comparison.style import RC

    wanted: list[tuple[str, str, Callable[[], tuple[Any, str] | None]]] = [
        ("loss", "Training loss", lambda: curves.loss(comparison, x)),
        (
            "evaluation",
            "Evaluation loss against training time",
            lambda: curves.evaluation(comparison),
        ),
        (
            "memory_throughput",
            "Memory against throughput",
            lambda: scatter.memory_throughput(comparison),
        ),
        ("costs", "Where a step's time goes, and the memory", lambda: bars.costs(comparison)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, title, make in wanted:
        path = folder / f"{name}.png"
        # of an earlier comparison, which may have had what this one lacks
        path.unlink(missing_ok=True)
        with mpl.rc_context(RC):
            made = make()
            if made is None:
                continue
            figure, caption = made
            figure.savefig(path)
        pictures.append(Picture(path, title, caption))
    return pictures
