"""Inside a step host and device never meet; a step that is not finite is left out by the device
alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.gpu.devices import ON_CPU, ON_GPU, HostRead, no_host_reads, run_on
from tests.helpers import Trace, argv, flat, record, rows
from tests.test_update import OPTIMIZERS
from train.accumulate import compute_gradient
from train.config import load
from train.distributed.norms import scale_down
from train.optim.optimizer import can_skip_on_device
from train.run import Run, build
from train.step import update

FUSED = {name: OPTIMIZERS[name] for name in ("AdamW fused", "Adam", "Adagrad", "SGD with momentum")}
READS_ONCE = "{target: sgd, args: {momentum: 0.9, dampening: 0.1}}"


def steps_without_reads(arguments: list[str]) -> int:
    """How many steps were trained; raises where the host waits for the device inside one."""
    run = build(load(arguments), "accumulate")
    # As on a GPU, where a CPU would read the norm.
    run.learner.parallel.clip = scale_down
    run.learner.skips_on_device = can_skip_on_device(run.learner.optimizer)
    compute = run.watch(compute_gradient)
    count = 0
    for window in run.windows:
        if window.k == 1:  # what is made at the first use is made here
            compute(run.learner, window)
            update(run.learner, 0.01)
            continue
        with no_host_reads(run.learner.device):
            compute(run.learner, window)
            update(run.learner, 0.01)
        count += 1
    run.learner.skips.look()
    run.close("finished", 0)
    return count


def each_optimizer(several: dict[str, list[str]]) -> dict[str, int]:
    return {name: steps_without_reads(arguments) for name, arguments in several.items()}


def arguments_of(
    folder: Path, precision: str, micro: str, optimizers: dict[str, str]
) -> dict[str, list[str]]:
    given = (
        f"precision={precision}",
        f"batch.micro={micro}",
        "ema.decay=0.9",
        "optimizer.max_grad_norm=1.0",
    )
    given += ("log.every_steps=100", "duration={steps: 3}", "optimizer.lr=0.01")
    found = {}
    for name, optimizer in optimizers.items():
        found[name] = argv(
            folder, *given, f"optimizer={optimizer}", f"name={name.replace(' ', '-')}"
        )
    return found


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        (ON_CPU, "fp32"),
        (ON_CPU, "bf16"),
        pytest.param("cuda", "fp32", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", "bf16", marks=pytest.mark.gpus(1)),
        pytest.param("cuda", "fp16", marks=pytest.mark.gpus(1)),
    ],
)
def test_the_host_never_waits_inside_a_step(tmp_path: Path, kind: str, precision: str) -> None:
    """With one micro-step and with four, with the average of the weights, at every fused optimizer."""
    for micro in ("all", "2") if kind == "cuda" else ("2",):
        folder = tmp_path / micro
        folder.mkdir()
        [counts] = run_on(kind, 1, each_optimizer, arguments_of(folder, precision, micro, FUSED))
        assert counts == dict.fromkeys(FUSED, 2)


def reads_once(arguments: list[str]) -> bool:
    try:
        steps_without_reads(arguments)
    except (HostRead, RuntimeError) as error:
        return isinstance(error, HostRead) or "synchroniz" in str(error)
    return False


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
def test_the_check_sees_a_read(tmp_path: Path, kind: str) -> None:
    """SGD with dampening cannot leave out a step on the device: it reads the host, as edges.md
    says.
    """
    [arguments] = arguments_of(tmp_path, "fp32", "all", {"dampened": READS_ONCE}).values()

    assert run_on(kind, 1, reads_once, arguments) == [True]


def state(run: Run) -> list[Any]:
    """Weights and all that the optimizer keeps, in an order."""
    kept = run.learner.optimizer.state_dict()["state"]
    moments = [
        value for of_one in kept.values() for value in of_one.values() if isinstance(value, Tensor)
    ]
    return [flat(run.learner.parameters), *[flat([moment]) for moment in moments]]


def around_an_infinite_gradient(
    arguments: list[str], at: int
) -> tuple[list[Any], list[Any], list[Any]]:
    """State before, right after and one step after step `at`, in which one number of one gradient
    is inf.
    """
    run = build(load(arguments), "accumulate")
    # As on a GPU, where a CPU would read the norm.
    run.learner.parallel.clip = scale_down
    run.learner.skips_on_device = can_skip_on_device(run.learner.optimizer)
    compute = run.watch(compute_gradient)
    found: dict[int, list[Any]] = {}

    for window in run.windows:
        found[window.k] = state(run)
        compute(run.learner, window)
        if window.k == at:
            gradient = run.learner.parameters[0].grad
            assert gradient is not None
            gradient.view(-1)[0] = torch.inf
        update(run.learner, 0.01)
    found[window.k + 1] = state(run)
    run.close("finished", 0)
    return found[at], found[at + 1], found[at + 2]


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
@pytest.mark.parametrize("optimizer", ["AdamW fused", "SGD with momentum"])
def test_an_infinite_gradient_moves_nothing(tmp_path: Path, kind: str, optimizer: str) -> None:
    given = (
        f"optimizer={FUSED[optimizer]}",
        "optimizer.lr=0.01",
        "precision=fp32",
        "duration={steps: 3}",
    )

    [(before, after, later)] = run_on(
        kind, 1, around_an_infinite_gradient, argv(tmp_path, *given), 2
    )

    assert len(before) == len(after) > 1
    for ours, expected in zip(after, before, strict=True):
        assert np.array_equal(ours, expected)
    assert not np.array_equal(later[0], after[0])


def overflowing(arguments: list[str], k: int) -> tuple[Trace, dict[str, Any], dict[str, Any]]:
    """(a run whose step k overflows on the last rank, the scaler's state at its end, and as the run
    began).
    """
    kept: list[Run] = []
    begun: list[dict[str, Any]] = []

    def prepare(run: Run, trace: Trace) -> None:
        kept.append(run)
        begun.append(run.learner.scaler.state_dict())

        def overflow(gradient: Tensor) -> Tensor:
            hit = trace.windows[-1].k == k and run.ranks.rank == run.ranks.world_size - 1
            return torch.full_like(gradient, torch.inf) if hit else gradient

        run.learner.parameters[0].register_hook(overflow)

    trace = record(arguments, prepare=prepare)
    return trace, kept[0].learner.scaler.state_dict(), begun[0]


@pytest.mark.gpus(1)
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.gpus(2))])
def test_float16_halves_its_scale_and_a_resume_brings_it_back(
    tmp_path: Path, world_size: int
) -> None:
    """The CPU form, with the scaler put in by hand: tests/test_scaler.py."""
    given = (
        "precision=fp16",
        f"optimizer={FUSED['AdamW fused']}",
        "optimizer.lr=0.01",
        "checkpoint.resume=auto",
    )
    given += ("checkpoint.every_steps=3",)

    first = run_on(
        "cuda", world_size, overflowing, argv(tmp_path, *given, "duration={steps: 3}"), 2
    )
    second = run_on(
        "cuda", world_size, overflowing, argv(tmp_path, *given, "duration={steps: 5}"), 99
    )

    scales = [row["train/loss_scale"] for row in rows(tmp_path, "train/loss_scale")]
    assert scales[1] == scales[0] / 2
    for (trace, ended, _), (_, _, begun) in zip(first, second, strict=True):
        assert trace.skipped_steps == 1
        assert np.array_equal(trace.weights[1], trace.weights[2])
        assert np.array_equal(trace.weights[-1], first[0][0].weights[-1])
        assert begun == ended, "the scale, and the steps since it last grew"
