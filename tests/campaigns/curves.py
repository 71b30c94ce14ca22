"""How the two configs that need no download train: python -m tests.campaigns.curves [FOLDER]

The standard loop on one rank, seed 0, each config as it is; a picture and a line of each go into
docs/results/accumulation.md. Stopped, the same command with the same FOLDER goes on.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from tests.campaigns.launched import RESULTS, Launch, commit_of, copy_small, run_all, write_between
from train import metric_names as names
from train.comparison.plot_style import COLOURS, RC, WIDTH_INCHES, legend_above
from train.comparison.read import read_folder
from train.comparison.run import Run


@dataclass(frozen=True)
class Curve:
    config: str
    title: str
    samples: str  # what they are
    metric: str  # told of the last evaluation, beside the loss

    @property
    def name(self) -> str:
        return Path(self.config).stem


CURVES = (
    Curve("configs/digits.yaml", "Handwritten digits", "images", "eval/accuracy"),
    Curve("configs/lm.yaml", "The language model", "blocks of 128 tokens", "eval/bits_per_byte"),
)


def picture(run: Run, curve: Curve, path: Path) -> None:
    """The training loss of each row with the evaluations in it; below, on the same axis, the
    learning rate.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_INCHES, 5.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
        looks: dict[str, dict[str, Any]] = {
            names.LOSS: {"color": COLOURS[0], "lw": 1.8},
            names.EVAL_LOSS: {
                "color": COLOURS[1],
                "lw": 1.8,
                "ls": (0, (5, 1.5)),
                "marker": "s",
                "ms": 7,
                "mec": "white",
            },
        }
        for metric, look in looks.items():
            found = run.curve(metric)
            above.plot(list(found), list(found.values()), **look)
        if min(run.curve(names.LOSS).values()) * 10 < max(run.curve(names.LOSS).values()):
            above.set_yscale("log")
        above.set_ylabel("loss (nats)")
        rates = run.curve(names.LEARNING_RATE)
        below.plot(list(rates), list(rates.values()), color=COLOURS[4], lw=1.8)
        below.set_ylim(bottom=0)
        below.set_ylabel("learning\nrate")
        below.set_xlabel(f"samples seen ({curve.samples})")
        below.xaxis.set_major_formatter(EngFormatter(sep=" "))
        figure.align_ylabels()
        handles = [Line2D([], [], **look) for look in looks.values()]
        legend_above(
            figure,
            handles,
            ["training: the step that got a row", "evaluation: all held-out samples"],
        )
        figure.savefig(path)


def told(run: Run, curve: Curve, picture_path: str) -> str:
    """The last evaluation in words, and the picture."""
    evaluated = [row for row in run.rows if names.EVAL_LOSS in row][-1]
    steps = evaluated[names.GLOBAL_STEP]
    metric = curve.metric.removeprefix(names.EVAL).replace("_", " ")
    alt = f"{curve.title}: training loss, evaluation loss and learning rate against samples seen"
    return (
        f"{curve.title} (`{curve.config}`): after {steps:,.0f} steps of "
        f"{run.derived['effective_batch']} samples, evaluation loss "
        f"{evaluated[names.EVAL_LOSS]:.4g}, {metric} {evaluated[curve.metric]:.4g} on "
        f"{evaluated[names.EVAL_SAMPLES]:.0f} held-out samples.\n\n![{alt}]({picture_path})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where the runs are kept (default: a temporary folder)"
    )
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="curves-"))
    print(f"runs are kept in {folder}", flush=True)
    run_all(
        [(Launch("standard", curve.config, curve.name, 1), folder.resolve()) for curve in CURVES]
    )
    parts = []
    for curve in CURVES:
        run = read_folder(folder / curve.name)
        assert isinstance(run, Run), run
        path = Path("../pictures") / f"curves-{curve.name}.png"
        picture(run, curve, folder / path.name)
        copy_small(folder / path.name, RESULTS / path)
        parts.append(told(run, curve, str(path)))
    command = (
        f"`python -m tests.campaigns.curves` ({commit_of(run)}): standard loop, one rank, seed 0."
    )
    write_between(
        RESULTS / "accumulation.md", "curves", "\n\n".join(["## Two curves", command, *parts])
    )


if __name__ == "__main__":
    main()
