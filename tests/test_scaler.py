"""float16: the loop scales the loss, and leaves out the steps whose scaled gradient overflows.

Tried on a CPU, where the scaler is put into a run by hand: autocast to float16 needs a GPU, scaling
does not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import Trace, argv, record, rows
from tests.test_update import OPTIMIZERS
from train.accumulate import compute_gradient
from train.main import main
from train.metrics import loss_scale
from train.run import Run

# a power of two, as the scaler keeps it: float64 gradients are then the same bit for bit
SCALE = 1024.0


def scaled(
    arguments: list[str], reference: list[str], k: int
) -> tuple[Trace, Trace, dict[str, Any]]:
    """(a run whose step k overflows in micro-step 1 of rank 1, the same without scaler and step k,
    scaler's state).
    """
    kept: dict[str, Any] = {}

    def prepare(run: Run, trace: Trace) -> None:
        run.learner.scaler = kept["scaler"] = torch.amp.GradScaler("cpu", init_scale=SCALE)
        calls = 0

        def overflow(gradient: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            # two micro-steps each
            hit = trace.windows[-1].k == k and calls % 2 == 1 and run.ranks.rank == 1
            return torch.full_like(gradient, torch.inf) if hit else gradient

        run.learner.parameters[0].register_hook(overflow)

    trace = record(arguments, prepare=prepare)
    return trace, record(reference, left_out=[k]), kept["scaler"].state_dict()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("optimizer", ["AdamW fused", "AdamW foreach", "SGD with momentum"])
def test_all_ranks_leave_out_a_step_that_overflows_on_one(
    run_ranks: Any, tmp_path: Path, optimizer: str, k: int
) -> None:
    given = (
        f"optimizer={OPTIMIZERS[optimizer]}",
        "optimizer.lr=0.05",
        "optimizer.max_grad_norm=0.1",
        "batch.micro=2",
    )
    arguments, reference = (
        argv(tmp_path, *given, "data.args.size=40", f"name={name}") for name in ("run", "plain")
    )

    ranks = run_ranks(2, scaled, arguments, reference, k)

    expected = [SCALE if step < k else SCALE / 2 for step in range(1, 6)]
    assert [row["train/loss_scale"] for row in rows(tmp_path, "train/loss_scale")] == expected
    assert not rows(tmp_path, "train/loss_scale", "plain")
    averaged = [row["train/global_step"] for row in rows(tmp_path, "train/loss_mean")]
    assert averaged == [step for step in range(1, 6) if step != k]
    logged, plain = (
        [r["train/grad_norm"] for r in rows(tmp_path, "train/grad_norm", name)]
        for name in ("run", "plain")
    )
    assert logged[k:] == plain[k - 1 :], "the norm that is logged is that of the unscaled gradient"
    for trace, without, state in ranks:
        assert trace.skipped_steps == 1
        assert state["scale"] == SCALE / 2
        assert np.array_equal(trace.weights[k - 1], trace.weights[k]), "the step moved something"
        assert np.array_equal(trace.weights[k], ranks[0][0].weights[k])
        for ours, expected_weights in zip(trace.weights[k:], without.weights[k - 1 :], strict=True):
            assert np.array_equal(ours, expected_weights)


def start_in_half(folder: str) -> int:
    return main(argv(Path(folder), "precision=fp16"), "accumulate", compute_gradient)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_cpu_is_refused_by_name(run_ranks: Any, tmp_path: Path, world_size: int) -> None:
    """accelerate would train in float32 and not say so."""
    assert run_ranks(world_size, start_in_half, str(tmp_path)) == [2] * world_size

    assert not (tmp_path / "run").exists()


def test_the_refusal_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it knows one precision per process

    assert start_in_half(str(tmp_path)) == 2
    AcceleratorState._reset_state()

    assert (
        "precision=fp16 needs a GPU, and this is a CPU. Set: precision=bf16"
        in capsys.readouterr().err
    )


def test_only_one_scaler_scales(tmp_path: Path) -> None:
    seen: list[Run] = []

    record(argv(tmp_path, "duration={steps: 1}"), prepare=lambda run, _: seen.append(run))

    learner = seen[0].learner
    # accelerate's own, whose `backward` would scale too
    assert learner.accelerator.scaler_handler.enabled is False
    assert not learner.scaler.is_enabled()
    assert loss_scale.part(learner).metrics({}) == {}
