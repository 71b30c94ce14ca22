"""One effective batch, cut in three ways: python -m tests.campaigns.one_curve [FOLDER]

The language model, 16 blocks a step as 1 x 16, 4 x 4 and 16 x 1, on one rank. The picture of the
README (docs/pictures/one-curve.png) and a table in docs/results/accumulation.md come of it. In
float64, so that what is left between the curves is seen to be rounding. Stopped, the same command
with the same FOLDER resumes.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.campaigns.launched import RESULTS, Launch, commit_of, copy_small, run_all, write_between
from train import metric_names as names
from train.comparison.plot_style import COLOURS, RC
from train.comparison.read import read_folder
from train.comparison.run import Run

EFFECTIVE = 16
STEPS = 100
PICTURE = Path("../pictures/one-curve.png")


@dataclass(frozen=True)
class Cut:
    micro: int
    look: dict[str, Any]

    @property
    def accumulation_steps(self) -> int:
        return EFFECTIVE // self.micro

    @property
    def label(self) -> str:
        return f"{self.accumulation_steps} x {self.micro}"

    def launch(self) -> Launch:
        overrides = (
            f"batch.micro={self.micro}",
            f"duration.steps={STEPS}",
            f"evaluate.every_steps={STEPS}",
            "log.every_steps=1",
            "noise_scale.every_steps=0",
            "precision=fp64",
        )
        return Launch(
            loop="accumulate",
            config="configs/lm.yaml",
            name=f"fp64-micro{self.micro}",
            ranks=1,
            overrides=overrides,
        )


# Wide below, thin and broken above: three lines in one place can all be seen.
CUTS = (
    Cut(16, {"color": COLOURS[6], "lw": 9, "alpha": 0.55, "solid_capstyle": "round"}),
    Cut(4, {"color": COLOURS[1], "lw": 3.6}),
    Cut(1, {"color": COLOURS[4], "lw": 1.6, "ls": (0, (4, 3))}),
)
BARS = (COLOURS[6], COLOURS[1], COLOURS[4])


def activations_mib(run: Run) -> float:
    return 1024 * max(run.curve(names.ACTIVATIONS).values())


def largest_difference(first: Run, other: Run) -> float:
    """Over all steps, relative to the loss of that step."""
    curve = other.curve(names.LOSS)
    return max(abs(curve[seen] - loss) / loss for seen, loss in first.curve(names.LOSS).items())


def draw_curves(axes: Axes, runs: list[Run]) -> None:
    for cut, run in zip(CUTS, runs, strict=True):
        curve = run.curve(names.LOSS)
        axes.plot(list(curve), list(curve.values()), label=cut.label, **cut.look)
    axes.set_xlabel("samples seen (blocks of 128 tokens)")
    axes.set_ylabel("training loss (nats)")
    axes.set_title("The same curve ...", loc="left", fontweight="bold")
    axes.legend(title="micro-batches x samples", frameon=False, loc="upper right")

    # a jump that all three make says more than a smooth curve
    first = runs[0].curve(names.LOSS)
    at = max(first, key=lambda seen: first[seen])
    axes.annotate(
        "the jump is the\nsame, too",
        xy=(at, first[at]),
        xytext=(at + 110, 0.88 * first[at]),
        arrowprops={"arrowstyle": "-", "color": "#666666"},
        color="#444444",
    )
    largest = max(largest_difference(runs[0], run) for run in runs)
    axes.text(
        0.985,
        0.44,
        f"largest relative difference: {largest:.1e}",
        transform=axes.transAxes,
        ha="right",
        color="#444444",
    )


def draw_memory(axes: Axes, runs: list[Run]) -> None:
    labels = [cut.label for cut in CUTS]
    bars = axes.bar(labels, [activations_mib(run) for run in runs], color=BARS, width=0.62)
    axes.bar_label(bars, fmt="{:,.1f}", padding=3)
    axes.set_ylabel("activations (MiB)")
    axes.set_xlabel("micro-batches x samples")
    axes.set_title("... less memory", loc="left", fontweight="bold")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)


def draw(runs: list[Run], path: Path) -> None:
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.9, 1])
        draw_curves(left, runs)
        draw_memory(right, runs)
        figure.savefig(path, dpi=160)


def table(runs: list[Run]) -> str:
    head = (
        "| micro-batches x samples | activations | largest relative difference of `train/loss` to "
        f"{CUTS[0].label} |\n|---|---|---|\n"
    )
    rows = []
    for cut, run in zip(CUTS, runs, strict=True):
        difference = largest_difference(runs[0], run)
        rows.append(f"| {cut.label} | {activations_mib(run):.1f} MiB | {difference:.1e} |")
    return head + "\n".join(rows)


def read_runs(folder: Path) -> list[Run]:
    runs = []
    for cut in CUTS:
        run = read_folder(folder / cut.launch().name)
        assert isinstance(run, Run), run
        runs.append(run)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where the runs are kept (default: a temporary folder)"
    )
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="one-curve-"))
    print(f"runs are kept in {folder}", flush=True)
    run_all([(cut.launch(), folder.resolve()) for cut in CUTS])

    runs = read_runs(folder)
    draw(runs, folder / PICTURE.name)
    copy_small(folder / PICTURE.name, RESULTS / PICTURE)
    text = (
        f"## One batch, cut in three ways\n\n`python -m tests.campaigns.one_curve` "
        f"({commit_of(runs[0])}): `configs/lm.yaml`, {STEPS} steps of {EFFECTIVE} blocks, one rank "
        "of one thread, float64, a row for each step. Activations are `memory/activations_gib`: "
        "the bytes that autograd saves for the backward pass, the most at once.\n\n"
        f"![One effective batch cut in three ways: one curve, falling memory]({PICTURE})\n\n"
        f"{table(runs)}"
    )
    write_between(RESULTS / "accumulation.md", "one-curve", text)


if __name__ == "__main__":
    main()
