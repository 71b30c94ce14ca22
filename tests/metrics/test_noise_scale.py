"""The noise scale in real runs: what the hooks see, that they change nothing, and what is logged."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import Array, Trace, argv, record, rows, whole_batch
from tests.helpers_noise import TRUTH
from train import metric_names as names
from train.accumulate import compute_gradient
from train.comparison import critical_batch as worth
from train.main import main
from train.metrics import noise_scale as noise
from train.run import Run

Measured = tuple[float, float, int, float]


def measured(arguments: list[str], loop: str) -> tuple[Trace, list[Measured]]:
    """(trace, what was added to the averages): sum of |h_j|^2 / w_j, |g|^2, micro-batches, samples; of
    each step.
    """
    measurements: list[Measured] = []
    add = worth.Averages.add

    def recording_add(self: worth.Averages, *measurement: Any) -> None:
        measurements.append(measurement)
        add(self, *measurement)

    worth.Averages.add = recording_add  # type: ignore[method-assign]
    try:
        return record(arguments, loop), measurements
    finally:
        worth.Averages.add = add  # type: ignore[method-assign]


def separately(arguments: list[str], weights: Array, of_ranks: list[list[Array]]) -> Measured:
    """The same from one backward pass per micro-batch, in plain PyTorch."""
    from torch.nn.functional import cross_entropy

    ids = [micro_batch for of_rank in of_ranks for micro_batch in of_rank if len(micro_batch)]
    samples = sum(map(len, ids))
    parts = sum(
        (whole_batch(arguments, weights, i, cross_entropy)[1] ** 2).sum()
        * (len(i) / samples) ** 2
        / (len(i) / samples)
        for i in ids
    )
    whole = (whole_batch(arguments, weights, np.concatenate(ids), cross_entropy)[1] ** 2).sum()
    return float(parts), float(whole), len(ids), samples


@pytest.mark.parametrize(
    ("world_size", "loop", "batch"),
    [
        (1, "accumulate", ("batch.effective=8", "batch.micro=3")),  # 3 + 3 + 2
        (2, "accumulate", ("batch.effective=7", "batch.micro=2")),  # 2 + 2 and 2 + 1
        (2, "accumulate", ("batch.effective=3", "batch.micro=1")),  # 1 + 1 and 1 + a filler
        (2, "standard", ("batch.effective=8",)),
        (3, "accumulate", ("batch.effective=10", "batch.micro=2", "optimizer.max_grad_norm=0.01")),
    ],
)
def test_hooks_see_the_gradient_of_each_micro_batch(
    run_ranks: Any, tmp_path: Path, world_size: int, loop: str, batch: tuple[str, ...]
) -> None:
    """Unequal micro-batches, a ragged last window and fillers included."""
    arguments = argv(
        tmp_path, *batch, "noise_scale.every_steps=1", "log.every_steps=3", "data.args.size=20"
    )

    ranks = run_ranks(world_size, measured, arguments, loop)

    (trace, measurements), *_ = ranks
    assert len(measurements) == len(trace.windows) >= 2
    for k, found in enumerate(measurements):
        of_ranks = []
        for other, _ in ranks:
            real = [size for size in other.sizes[k] if size]
            of_ranks.append(np.split(np.array(other.ids[k], dtype=int), np.cumsum(real)[:-1]))
        assert found == pytest.approx(separately(arguments, trace.weights[k], of_ranks), rel=1e-10)
    for _, other in ranks:
        assert other == measurements


def test_one_micro_batch_alone_is_not_measured(tmp_path: Path) -> None:
    arguments = argv(tmp_path, "noise_scale.every_steps=1", "duration.epochs=4")

    _, measurements = measured(arguments, "standard")

    assert measurements == []
    assert not any(names.NOISE_SCALE in row for row in rows(tmp_path))
    assert "accumulation" not in (tmp_path / "run" / "log.txt").read_text().split("finished")[1]


def both(unarmed: list[str], armed: list[str]) -> tuple[Trace, Trace]:
    return record(unarmed), record(armed)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_bitwise_the_same(
    run_ranks: Any, tmp_path: Path, world_size: int, precision: str
) -> None:
    common = (
        f"precision={precision}",
        "batch.micro=2",
        "optimizer.target=adamw",
        "optimizer.lr=0.01",
    )
    common += ("duration.epochs=4", "model.args.dropout=0.1", "optimizer.max_grad_norm=0.5")
    unarmed, armed = (
        argv(tmp_path, *common, f"name=every{n}", f"noise_scale.every_steps={n}") for n in (0, 1)
    )

    for without, with_hooks in run_ranks(world_size, both, unarmed, armed):
        assert len(without.weights) == 21
        assert all(
            np.array_equal(a, b) for a, b in zip(without.weights, with_hooks.weights, strict=True)
        )


REGRESSION = (
    "data.source=tests.helpers_noise.gaussian",
    "data.args={size: 51200}",
    "model={target: tests.helpers_noise.Displaced, args: {}}",
    "task=tests.helpers.Regression",
    "optimizer.lr=1e-12",
    "precision=fp32",
    "log.every_steps=100",
    "noise_scale.every_steps=1",
)


def train(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


@pytest.mark.parametrize(("world_size", "batch"), [(1, "batch.micro=16"), (2, "batch.micro=13")])
def test_the_truth_through_the_real_loop(
    run_ranks: Any, tmp_path: Path, world_size: int, batch: str
) -> None:
    """Large steps (512 samples: as much as 8,000 steps of 64 tell of |G|^2 in 1,000), so that 100
    are enough.
    """
    arguments = argv(tmp_path, *REGRESSION, "batch.effective=512", batch)

    assert run_ranks(world_size, train, arguments) == [0] * world_size

    row = rows(tmp_path)[-1]
    assert row[names.GLOBAL_STEP] == 100
    assert row[names.NOISE_SCALE] == pytest.approx(TRUTH, rel=0.1)
    assert row[names.BREAK_EVEN] > 0
    assert 0 < row[names.NOISE_SCALE_ERROR] <= 2 * row[names.BREAK_EVEN_ERROR] < 2
    log = (tmp_path / "run" / "log.txt").read_text()
    noise = (
        f"noise scale of {row[names.NOISE_SCALE]:,.3g} samples +- "
        f"{2 * row[names.NOISE_SCALE_ERROR]:.0%}"
    )
    assert noise in log
    assert "would be fastest to the same loss" in log


def test_the_break_even_number_follows_from_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A micro-step takes 2 s and synchronisation and optimizer 9 s, whatever the clock says."""
    from train.metrics.step_timing import StepTiming

    def take(self: StepTiming) -> dict[str, float]:
        found = honest(self)
        micro_steps = 512 / 16
        return found | {
            names.FORWARD_BACKWARD_SECONDS: 2 * micro_steps + 1,
            names.SYNC_SECONDS: 1.0,
            names.OPTIMIZER_SECONDS: 8.0,
        }

    honest = StepTiming.take
    monkeypatch.setattr(StepTiming, "take", take)
    assert train(argv(tmp_path, *REGRESSION, "batch.effective=512", "batch.micro=16")) == 0

    row = rows(tmp_path)[-1]
    assert row[names.BREAK_EVEN] == pytest.approx(
        np.sqrt(row[names.NOISE_SCALE] / 16 * 9 / 2), rel=1e-6
    )


@pytest.mark.parametrize(
    ("samples", "micro_steps", "timed"), [(100, 4, True), (38, 4, False), (75, 3, False)]
)
def test_a_ragged_step_is_not_timed(samples: int, micro_steps: int, timed: bool) -> None:
    """The last of an epoch, which rows may fall on more often than its share, has smaller
    micro-batches.
    """
    ranks: Any = SimpleNamespace(world_size=1)
    window: Any = SimpleNamespace(
        k=10, samples=samples, micro_batches=SimpleNamespace(sizes=(1,) * micro_steps)
    )
    gauge = noise.NoiseScale(ranks, every_steps=20)
    gauge.load_state_dict({"averages": {}, "usual": (25.0, 4)})

    gauge.around(lambda learner, window: torch.zeros(()))(Any, window)
    gauge.take({names.FORWARD_BACKWARD_SECONDS: 0.4, names.OPTIMIZER_SECONDS: 0.1})

    assert list(gauge._costs) == ([(0.1, 0.1)] if timed else [])


def test_unknown_is_said_and_absent(tmp_path: Path) -> None:
    """Ten measurements with so much noise tell nothing."""
    argument = argv(
        tmp_path, *REGRESSION, "data.args={size: 640}", "batch.effective=64", "batch.micro=16"
    )
    assert train([*argument, "log.every_steps=1"]) == 0

    assert not any(names.NOISE_SCALE in row or names.BREAK_EVEN in row for row in rows(tmp_path))
    assert (
        "whether it pays is unknown: the gradient noise is not resolved after 10 measurements\n"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_armed_steps_are_not_those_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[int] = []
    measure = noise.NoiseScale._measure

    def watched(
        self: noise.NoiseScale, compute: Callable[..., Any], learner: Any, window: Any
    ) -> Any:
        armed.append(window.k)
        return measure(self, compute, learner, window)

    monkeypatch.setattr(noise.NoiseScale, "_measure", watched)
    assert train(argv(tmp_path, "batch.micro=2", "duration.steps=60", "log.every_steps=10")) == 0

    assert armed == [11, 31, 51]


class OwnBackward:
    """A task that differentiates with respect to the parameters by itself: the hooks see that, too."""

    columns = ("inputs", "labels")

    def loss_weight(self, batch: Any) -> float:
        return float(len(batch["labels"]))

    def loss_sum(self, model: Any, batch: Any) -> Any:
        import torch
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum")
        if torch.is_grad_enabled():
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        return loss


def test_a_task_with_a_backward_pass_of_its_own_is_not_measured(tmp_path: Path) -> None:
    _, measurements = measured(
        argv(
            tmp_path,
            "task=tests.metrics.test_noise_scale.OwnBackward",
            "batch.micro=2",
            "noise_scale.every_steps=1",
        ),
        "accumulate",
    )

    assert measurements
    assert all(np.isnan(parts) for parts, *_ in measurements)


def test_the_run_object_is_untouched_where_it_is_off(tmp_path: Path) -> None:
    def prepare(run: Run, trace: Trace) -> None:
        def gradient(learner: Any, window: Any) -> Any:
            raise AssertionError

        off = noise.NoiseScale(run.ranks, 0)
        assert off.around(gradient) is gradient
        assert off.take({}) == {}
        assert off.verdict() == ""

    record(argv(tmp_path, "duration.steps=1"), prepare=prepare)
