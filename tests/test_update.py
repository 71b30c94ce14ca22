"""Check, clip, step, zero_grad: once per step, on the gradient of the whole step and on nothing
else.
"""

import io
import json
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.functional import cross_entropy

from tests.helpers import (
    Array,
    Trace,
    argv,
    distance,
    flat,
    record,
    record_all,
    rows,
    steps,
    whole_batch,
)
from train.accumulate import compute_gradient
from train.batch.window import Window
from train.main import main
from train.optim.lr_schedule import Rate
from train.run import Run
from train.step import Learner

STALE = ("model.target=tests.helpers.Stale", "model.args={}")


def dirty(run: Run, trace: Trace) -> None:
    for parameter in run.learner.parameters:
        parameter.grad = parameter.detach() * 0 + 1


def record_dirty(arguments: list[str]) -> Trace:
    return record(arguments, prepare=dirty)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("function", "model"), [(record, STALE), (record_dirty, ())])
def test_a_gradient_from_before_never_reaches_the_first_step(
    run_ranks: Any, tmp_path: Path, world_size: int, function: Any, model: tuple[str, ...]
) -> None:
    arguments = argv(tmp_path, *model, "batch.micro=2", "duration={steps: 1}")

    trace = run_ranks(world_size, function, arguments)[0]

    _, expected = whole_batch(arguments, trace.weights[0], steps(37, 8)[0], cross_entropy)
    assert distance(trace.gradients[1], expected) <= 1e-12


@pytest.mark.parametrize(("world_size", "micro"), [(1, "all"), (1, "2"), (2, "1"), (3, "all")])
@pytest.mark.parametrize(("limit", "clipped"), [(0.05, True), (1000, False)])
def test_clips_the_whole_gradient_once(
    run_ranks: Any, tmp_path: Path, world_size: int, micro: str, limit: float, clipped: bool
) -> None:
    arguments = argv(
        tmp_path, "data.args.size=20", f"batch.micro={micro}", f"optimizer.max_grad_norm={limit}"
    )

    trace = run_ranks(world_size, record, arguments)[0]

    for row, ids, weights in zip(rows(tmp_path), steps(20, 8), trace.weights, strict=False):
        _, gradient = whole_batch(arguments, weights, ids, cross_entropy)
        norm = np.linalg.norm(gradient)
        # the 1e-6 is PyTorch's
        expected = gradient * limit / (norm + 1e-6) if clipped else gradient
        assert bool(norm > limit) is clipped
        assert row["train/grad_norm"] == pytest.approx(norm, rel=1e-12)
        assert distance(trace.gradients[row["train/global_step"]], expected) <= 1e-12


OPTIMIZERS = {
    "AdamW fused": "{target: adamw, args: {fused: true}}",
    "AdamW foreach": "{target: adamw, args: {foreach: true}}",
    "AdamW plain": "{target: adamw, args: {fused: false, foreach: false}}",
    "Adam": "{target: adam, args: {weight_decay: 0.1}}",
    "Adagrad": "{target: adagrad}",
    "SGD with momentum": "{target: sgd, args: {momentum: 0.9, weight_decay: 0.1}}",
    "RMSprop": "{target: rmsprop, args: {momentum: 0.9, centered: true}}",
}


def with_and_without(arguments: list[str], reference: list[str], k: int) -> tuple[Trace, Trace]:
    return record(arguments), record(reference, left_out=[k])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(
    run_ranks: Any, tmp_path: Path, optimizer: str, k: int
) -> None:
    place = 8 * (k - 1) + 6  # the second micro-batch of rank 1, and nowhere else
    given = (
        f"optimizer={OPTIMIZERS[optimizer]}",
        "optimizer.lr=0.05",
        "optimizer.max_grad_norm=1.0",
        "batch.micro=2",
    )
    # PyTorch then fills memory that nobody initialised with NaN
    given += ("runtime.deterministic=true",)
    data = f"data.args={{size: 40, nan: [{place}]}}"
    arguments, reference = (
        argv(tmp_path, *given, data, f"name={name}") for name in ("run", "reference")
    )

    ranks = run_ranks(2, with_and_without, arguments, reference, k)

    assert [row["train/skipped_steps"] for row in rows(tmp_path, "train/skipped_steps")] == [
        int(step >= k) for step in range(1, 6)
    ]
    for trace, without in ranks:
        assert trace.skipped_steps == 1
        assert np.array_equal(trace.weights[k - 1], trace.weights[k]), "the step moved something"
        assert not np.array_equal(trace.weights[k], trace.weights[k + 1])
        for ours, expected in zip(trace.weights[k:], without.weights[k - 1 :], strict=True):
            assert np.isfinite(ours).all()
            assert np.array_equal(ours, expected)


def run_to_its_end(arguments: list[str]) -> tuple[int, str, int, Array, Array]:
    """(exit code, stderr, last step computed, weights before that step, weights at the end) of a
    run on this rank.
    """
    seen: dict[str, Any] = {}

    def watched(learner: Learner, window: Window) -> Any:
        seen.update(k=window.k, before=flat(learner.parameters), learner=learner)
        return compute_gradient(learner, window)

    with redirect_stderr(io.StringIO()) as errors:
        code = main(arguments, "accumulate", watched)
    return code, errors.getvalue(), seen["k"], seen["before"], flat(seen["learner"].parameters)


@pytest.mark.parametrize("optimizer", ["AdamW fused", "SGD with momentum"])
def test_on_nonfinite_stop_ends_the_run_before_the_update(
    run_ranks: Any, tmp_path: Path, optimizer: str
) -> None:
    arguments = argv(
        tmp_path,
        "data.args={size: 40, nan: [22]}",
        "batch.micro=2",
        "on_nonfinite=stop",
        f"optimizer={OPTIMIZERS[optimizer]}",
    )

    ranks = run_ranks(2, run_to_its_end, arguments)

    assert [(code, k) for code, _, k, _, _ in ranks] == [(1, 3), (1, 3)]
    assert "the norm of the gradient is nan" in ranks[0][1]
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["code"], ended["step"]) == (1, 2)
    for _, _, _, before, after in ranks:
        assert np.array_equal(before, after)
        assert np.array_equal(after, ranks[0][4])


@pytest.mark.parametrize(
    ("limit", "every", "code", "last"), [(3, 1, 1, 4), (4, 1, 0, 5), (3, 5, 1, 5), (4, 5, 0, 5)]
)
def test_too_many_steps_in_a_row_that_are_not_finite(
    run_ranks: Any, tmp_path: Path, limit: int, every: int, code: int, last: int
) -> None:
    """Steps 2 to 4 are not finite; the streak is found at the next row, also where it ended before
    that.
    """
    nan = "data.args={size: 40, nan: [8, 16, 24]}"
    arguments = argv(tmp_path, nan, f"max_nonfinite_steps={limit}", f"log.every_steps={every}")

    ranks = run_ranks(2, run_to_its_end, arguments)

    assert [(rank[0], rank[2]) for rank in ranks] == [(code, last)] * 2
    assert ("max_nonfinite_steps=3" in ranks[0][1]) is (code == 1)


def test_the_rate_is_the_same_for_every_split_and_counts_every_window(
    run_ranks: Any, tmp_path: Path
) -> None:
    """Window 2 has no label that counts, window 3 is not finite: no optimizer is called."""
    given = (
        "data.args={size: 52, ignored: [8, 16], nan: [20]}",
        f"optimizer={OPTIMIZERS['AdamW fused']}",
        "optimizer.lr=0.05",
        "schedule={name: cosine, warmup_steps: 2}",
    )
    whole, *cut = (
        argv(tmp_path, *given, f"batch.micro={micro}", f"name=micro{micro}")
        for micro in ("all", 3, 1)
    )

    several = [
        run_ranks(1, record_all, [whole, *cut])[0],
        *run_ranks(2, record_all, cut),
        *run_ranks(3, record_all, cut),
    ]

    rate = Rate(0.05, "cosine", 2, 7, 0.0)
    expected = {k: rate.at(k) for k in range(1, 8) if k not in (2, 3)}
    for trace in (trace for traces in several for trace in traces):
        assert trace.rates == expected
        assert len(trace.windows) == 7
    for micro in ("all", 3, 1):
        logged = rows(tmp_path, "train/learning_rate", f"micro{micro}")
        assert [row["train/learning_rate"] for row in logged] == [rate.at(k) for k in range(1, 8)]
