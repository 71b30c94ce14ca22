"""What pictures show: their axes, lines and bands, and that no label lies on another."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.comparison.folders import loss_at, make_run
from tests.comparison.test_comparison import compared
from train import metric_names as names
from train.comparison.comparison import Comparison
from train.comparison.cost_plot import costs
from train.comparison.evaluation_plot import evaluation
from train.comparison.loss_plot import loss as loss_picture
from train.comparison.memory_plot import memory_throughput
from train.comparison.plot_style import RC

PHASES = {
    **{names.DATA_SECONDS: 0.01, names.FORWARD_BACKWARD_SECONDS: 0.07, names.SYNC_SECONDS: 0.02},
    **{names.OPTIMIZER_SECONDS: 0.01, names.REST_SECONDS: 0.01},
}
GPU = {names.PEAK_ALLOCATED: 2.0, names.PEAK_RESERVED: 3.0, names.OPTIMIZER_PEAK: 1.0}


def pictures(comparison: Comparison, x: str = "samples") -> dict[str, Figure]:
    with mpl.rc_context(RC):
        made = {
            "loss": loss_picture(comparison, x),
            "evaluation": evaluation(comparison),
            "memory_throughput": memory_throughput(comparison),
            "costs": costs(comparison),
        }
        figures = {name: each.figure for name, each in made.items() if each}
        for figure in figures.values():
            FigureCanvasAgg(figure).draw()
    return figures


def two_set_ups(folder: Path, apart: Callable[[int], float], **of_second: Any) -> Comparison:
    """Two seeds each; the second set-up is `apart` from the first at a number of samples seen."""
    for seed in (0, 1):

        def loss(samples: int, seed: int = seed) -> float:
            return loss_at(samples) * (1 + seed / 10)

        def other(samples: int, loss: Callable[[int], float] = loss) -> float:
            return loss(samples) + apart(samples)

        identity = {"seed": seed}
        make_run(folder / f"all-seed{seed}", identity=identity, loss=loss, extra=PHASES | GPU)
        mine = {
            "identity": identity,
            "derived": {"micro_batch": 25},
            "loss": other,
            "extra": PHASES | GPU,
        }
        make_run(folder / f"split-seed{seed}", **mine | of_second)
    return compared(folder, target=0.05)


def overlapping(axis: Axis) -> list[tuple[str, str]]:
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    low, high = sorted(axis.get_view_interval())
    seen = [
        tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    boxes = [(label.get_text(), label.get_window_extent()) for label in seen if label.get_visible()]
    return [(a, b) for (a, first), (b, second) in combinations(boxes, 2) if first.overlaps(second)]


def labels(axes: Axes) -> tuple[str, str]:
    return axes.get_xlabel(), axes.get_ylabel()


@pytest.mark.parametrize(
    ("start", "reach"),
    [(1e-16, 1), (1.7e-8, 1.2), (1.7e-8, 3), (2e-8, 15), (1.7e-8, 30), (0.5, 150), (1e-16, 1e6)],
)
def test_no_label_lies_on_another(tmp_path: Path, start: float, reach: float) -> None:
    """Distances from `start` to `reach` times that."""
    result = two_set_ups(tmp_path, lambda samples: start * reach ** (samples / 30_000))
    figures = pictures(result)

    assert {"loss", "evaluation", "memory_throughput", "costs"} == set(figures)
    for name, figure in figures.items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                assert overlapping(axis) == [], name
    strip = figures["loss"].axes[1]
    low, high = strip.get_ylim()
    shown = [
        label
        for at, label in zip(strip.get_yticks(), strip.get_yticklabels(), strict=True)
        if low <= at <= high
    ]
    assert len([label for label in shown if label.get_text()]) >= 2


def test_a_ratio_has_no_label_on_another(tmp_path: Path) -> None:
    other = {"seed": 0, "optimizer.lr": 0.1}
    result = two_set_ups(
        tmp_path, lambda samples: 20 * loss_at(samples) * samples / 3e4, identity=other
    )
    (above, strip) = pictures(result)["loss"].axes

    assert strip.get_yscale() == "log"
    assert not overlapping(strip.yaxis)
    assert not overlapping(above.yaxis)


@pytest.mark.parametrize(
    ("x", "label"),
    [("samples", "samples seen"), ("steps", "optimizer steps"), ("hours", "training time (s)")],
)
def test_loss(tmp_path: Path, x: str, label: str) -> None:
    above, strip = pictures(two_set_ups(tmp_path, lambda samples: 1e-7 + samples * 1e-11), x)[
        "loss"
    ].axes

    assert (labels(above)[1], labels(strip)) == (
        "training loss",
        (label, "|difference|\nto the first"),
    )
    first, second = above.get_lines()
    assert np.asarray(first.get_ydata())[-1] == pytest.approx(1.05 * loss_at(30_000))
    assert np.asarray(first.get_xdata())[-1] == {"samples": 30_000, "steps": 300, "hours": 30}[x]
    assert len(np.asarray(second.get_ydata())) == 30
    assert len(above.collections) == 2  # a band over seeds for each
    band = above.collections[0].get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert (band.min(), band.max()) == pytest.approx((loss_at(30_000), 1.1 * loss_at(1000)))
    (distance,) = strip.get_lines()
    assert np.asarray(distance.get_ydata())[[0, -1]] == pytest.approx([1.1e-7, 4e-7], rel=1e-3)


def test_distances_of_zero_are_drawn_at_the_lower_edge(tmp_path: Path) -> None:
    result = two_set_ups(tmp_path, lambda samples: 0 if samples < 15_000 else 1e-8 * samples / 4000)
    strip = pictures(result)["loss"].axes[1]

    (distance,) = strip.get_lines()
    assert np.asarray(distance.get_ydata()).min() == pytest.approx(1e-8 * 15 / 12, rel=1e-4)
    assert strip.get_ylim()[0] < 1e-8 * 15 / 12


def test_losses_of_other_mathematics_are_compared_as_a_ratio(tmp_path: Path) -> None:
    other = {"seed": 0, "optimizer.lr": 0.1}
    strip = pictures(two_set_ups(tmp_path, lambda samples: loss_at(samples), identity=other))[
        "loss"
    ].axes[1]

    assert labels(strip) == ("samples seen", "ratio\nto the first")
    ratio, one = strip.get_lines()
    assert np.asarray(ratio.get_ydata()) == pytest.approx([2.0] * 30)
    assert list(one.get_ydata()) == [1, 1]


def test_evaluation(tmp_path: Path) -> None:
    (axes,) = pictures(two_set_ups(tmp_path, lambda samples: 0.0))["evaluation"].axes

    assert labels(axes) == ("training time (s), evaluation not counted", "evaluation loss")
    *of_runs, target = axes.get_lines()
    # each run thin, their mean thick
    assert [line.get_linewidth() for line in of_runs] == [0.8, 0.8, 2, 0.8, 0.8, 2]
    assert list(np.asarray(of_runs[2].get_xdata())) == [5, 10, 15, 20, 25, 30]
    assert np.asarray(of_runs[2].get_ydata())[-1] == pytest.approx(1.05 * loss_at(30_000))
    assert list(target.get_ydata()) == [0.05, 0.05]


def test_memory_against_throughput(tmp_path: Path) -> None:
    figure = pictures(two_set_ups(tmp_path, lambda samples: 0.0))["memory_throughput"]
    (axes,) = figure.axes

    assert labels(axes) == (
        "peak memory (GPU allocated), largest rank (GiB)",
        "throughput (samples/s)",
    )
    whole, split, joined = axes.get_lines()
    for line, points in ((whole, 2), (split, 2), (joined, 2)):
        assert np.asarray(line.get_xdata()) == pytest.approx([2.0] * points)
        assert np.asarray(line.get_ydata()) == pytest.approx([1000.0] * points)
    assert (whole.get_linestyle(), joined.get_linestyle()) == ("None", "-")


def test_only_points_of_the_same_mathematics_are_joined(tmp_path: Path) -> None:
    for rate, micro in ((0.01, 100), (0.01, 25), (0.003, 50), (0.003, 10), (0.1, 20)):
        make_run(
            tmp_path / f"lr{rate}-{micro}",
            identity={"optimizer.lr": rate},
            derived={"micro_batch": micro},
        )

    figure = pictures(compared(tmp_path))["memory_throughput"]

    lines = [line for line in figure.axes[0].get_lines() if line.get_linestyle() != "None"]
    assert [len(np.asarray(line.get_xdata())) for line in lines] == [2, 2]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"batch 100, 1 rank, as lr0.003-10", "batch 100, 1 rank, as lr0.01-100"} <= legend


def test_costs(tmp_path: Path) -> None:
    time, memory = pictures(two_set_ups(tmp_path, lambda samples: 0.0))["costs"].axes

    assert (time.get_xlabel(), memory.get_xlabel()) == (
        "time per step (ms)",
        "memory (GiB, peak, GPU allocated)",
    )
    for axes in (time, memory):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "split"]
    parts = {each.get_label(): [bar.get_width() for bar in each] for each in time.containers}  # type: ignore[union-attr]
    wanted = {
        "data": 10,
        "forward + backward": 50,
        "gradient sync": 20,
        "optimizer": 10,
        "rest": 10,
    }
    assert parts == {name: pytest.approx([width] * 2) for name, width in wanted.items()}
    (steps,) = time.get_lines()
    assert list(np.asarray(steps.get_xdata())) == pytest.approx([100, 100])
    parts = {each.get_label(): [bar.get_width() for bar in each] for each in memory.containers}  # type: ignore[union-attr]
    assert parts == {"all else": [2, 2], "reserved beyond": [1, 1]}
    (optimizer,) = memory.get_lines()
    assert (optimizer.get_label(), list(np.asarray(optimizer.get_xdata()))) == (
        "peak of optimizer",
        [1, 1],
    )


def test_memory_of_a_cpu_is_the_models_beside_that_of_the_process(tmp_path: Path) -> None:
    held = {names.WEIGHTS: 1 / 1024, names.GRADIENTS: 1 / 1024, names.OPTIMIZER_STATE: 2 / 1024}
    for name, micro, activations in (("whole", 100, 8 / 1024), ("split", 25, 2 / 1024)):
        folder = make_run(
            tmp_path / name,
            derived={"micro_batch": micro},
            extra=held | {names.ACTIVATIONS: activations},
        )
        rows = (
            (folder / "metrics.jsonl")
            .read_text()
            .replace('"memory/peak_rss_gib": 0.5', '"memory/peak_rss_gib": 0.4', 9)
        )
        (folder / "metrics.jsonl").write_text(rows)
    figures = pictures(compared(tmp_path / "whole", tmp_path / "split"))

    model, process = figures["costs"].axes
    parts = {each.get_label(): [bar.get_width() for bar in each] for each in model.containers}  # type: ignore[union-attr]
    # MiB
    assert parts == {
        "weights": [1, 1],
        "gradients": [1, 1],
        "optimizer": [2, 2],
        "activations": [8, 2],
    }
    assert (model.get_xlim()[0], process.get_xlim()[0] > 400) == (0, True)
    (axes,) = figures["memory_throughput"].axes
    assert axes.get_xlabel() == "activations, largest rank (MiB)"
    assert axes.get_xlim()[0] == 0, "a ratio is seen as one"
    drawn = [float(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata())]
    assert set(drawn) == {2, 8}, "the noise of the process is none of theirs"


def test_no_label_is_cut(tmp_path: Path) -> None:
    names_of_runs = [
        f"a-name-that-somebody-found-telling-{'and-still-longer-' * 3}{last}"
        for last in ("x", "y$z$")
    ]
    for name, batch in zip(names_of_runs, (100, 200), strict=True):
        make_run(
            tmp_path / name,
            identity={"batch.effective": batch, "data.source": name * 2},
            extra=PHASES,
        )
    result = compared(tmp_path)
    labels_of_groups = [group.label for group in result.groups]

    for figure in pictures(result).values():
        inside = figure.bbox
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        texts += [label for axes in figure.axes for label in axes.get_yticklabels()]
        for text in texts:
            box = text.get_window_extent()
            assert box.width == 0 or (box.x0 >= inside.x0 - 1 and box.x1 <= inside.x1 + 1), (
                text.get_text()
            )
        shown = "".join(text.get_text() for text in texts).replace("\n", "").replace("\\$", "$")
        assert all(label.replace(" ", "") in shown.replace(" ", "") for label in labels_of_groups)
