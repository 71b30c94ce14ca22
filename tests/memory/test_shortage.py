"""Out of memory ends a run in a sentence on all ranks, with what is kept and what to type: no stack
trace.
"""

import contextlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train.distributed.ranks
import train.leaving
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.batch.window import Batch, Window
from train.config import Config, load
from train.distributed.ranks import Ranks
from train.errors import RunFailed, is_out_of_memory
from train.main import main
from train.memory.shortage import Training, in_training
from train.plan.make import prepare
from train.plan.run_plan import RunPlan
from train.step import ComputeGradient, Learner
from train.tasks.classification import Classification

MESSAGE = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 1 has a total capacity of 79.19 GiB of "
    "which 1.25 GiB is free"
)
MORE = ". Including non-PyTorch memory, this process has 77.9 GiB memory in use."


def chained() -> RuntimeError:
    error = RuntimeError("the forward of my model has failed")
    error.__cause__ = torch.OutOfMemoryError("no room")
    return error


def test_what_is_an_out_of_memory() -> None:
    """The first two are those that torch and NumPy raise on this machine; the others are those of a
    GPU.
    """
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, dtype=np.uint8)

    for error in (
        of_torch.value,
        of_numpy.value,
        torch.OutOfMemoryError(MESSAGE + MORE),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(12, "Cannot allocate memory"),
        chained(),
    ):
        assert is_out_of_memory(error), repr(error)
    for other in (
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("a register ran out of memory"),
        RunFailed("rank 1 ran out of memory"),
        OSError(28, "No space left on device"),
    ):
        assert not is_out_of_memory(other), repr(other)


class Hungry(Classification):
    """Runs out of memory in a micro-step, counted from 1 in the step of a gradient; `where`:
    forward or backward.
    """

    at = seen = 0
    where = ""

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        loss = super().loss_sum(model, batch)
        Hungry.seen += 1
        if Hungry.seen == Hungry.at and Hungry.where == "forward":
            fill()
        if Hungry.seen == Hungry.at and Hungry.where == "backward":
            loss.register_hook(fill)
        return loss


def fill(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError(MESSAGE + MORE)


def failing(step: int, where: str, micro_step: int, rank: int | None) -> ComputeGradient:
    def compute(learner: Learner, window: Window) -> Tensor:
        if window.k == step and rank in (None, int(os.environ.get("RANK", "0"))):
            Hungry.seen, Hungry.at, Hungry.where = 0, micro_step, where
            if where == "update":
                learner.optimizer.step = fill
            if where == "save":
                learner.skips.state_dict = fill  # type: ignore[method-assign]
        losses = compute_gradient(learner, window)
        Hungry.at = 0
        return losses

    return compute


GIVEN = (
    "task=tests.memory.test_shortage.Hungry",
    "checkpoint={resume: auto, every_steps: 2}",
    "duration={steps: 4}",
    "batch.micro=2",
    "precision=fp32",
    "batch.on_oom=stop",
)


def start(arguments: list[str], *fault: Any) -> int:
    Hungry.at = 0
    # For the others to fail at the same place, and for the launcher to see who was first.
    train.leaving.WAIT_SECONDS = 1.0
    train.distributed.ranks.YIELD_SECONDS = 0.5
    try:
        return main(arguments, "accumulate", failing(*fault))
    except SystemExit as left:
        return int(str(left.code))


def reason(folder: Path) -> str:
    return str(json.loads((folder / "run" / "ended.json").read_text())["reason"])


@pytest.mark.parametrize(
    ("step", "where", "place", "kept"),
    [
        (1, "forward", "in step 1, in a micro-batch of 2", "there is no checkpoint yet"),
        (4, "backward", "in step 4, in a micro-batch of 2", "step 3 is saved"),
        (4, "update", "in step 4, in the optimizer's step", "step 3 is saved"),
        (2, "save", "after step 2, in a save", "there is no checkpoint yet"),
    ],
)
def test_it_is_one_sentence_with_what_to_type(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], step: int, where: str, place: str, kept: str
) -> None:
    assert start(argv(tmp_path, *GIVEN), step, where, 2, None) == 1

    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr
    assert f"rank 0 ran out of memory {place} (the host with " in stderr
    assert MESSAGE in stderr
    assert "non-PyTorch" not in stderr
    assert f"kept: {kept}" in stderr
    assert reason(tmp_path) in stderr
    typed = {"forward": "batch.micro=1   (", "backward": "batch.micro=1 name=run   ("}.get(
        where, "no setting makes it smaller"
    )
    assert typed in stderr
    if where == "backward":
        assert start(argv(tmp_path, *GIVEN, "batch.micro=1", "name=run"), 0, "", 0, None) == 0
        assert reason(tmp_path) == "finished"


def start_alone(arguments: list[str], *fault: Any) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = start(arguments, *fault)
    return code, stderr.getvalue()


def test_one_rank_alone_takes_the_other_along(run_ranks: Any, tmp_path: Path) -> None:
    """In the last backward of a step. Other places: row 20 of the campaign of faults."""
    (code, other_stderr), (code_of_failed, stderr) = run_ranks(
        2, start_alone, argv(tmp_path, *GIVEN), 3, "backward", 2, 1
    )

    assert (code, code_of_failed) == (1, 1)
    assert stderr.startswith("rank 1 ran out of memory in step 3, in a micro-batch of 2")
    assert (
        f"kept: the last complete checkpoint is {tmp_path}/run/checkpoints/step-00000002\n"
        in stderr
    )
    assert "batch.micro=1 name=run" in stderr
    assert f"rank 0: {stderr}" in other_stderr
    assert reason(tmp_path) == stderr.rstrip("\n")


# What is proposed


def training(
    config: Config, plan: RunPlan, is_sharded: bool = False, has_blocks: bool = False
) -> Training:
    return Training(
        rank=0,
        steps_done=0,
        device=torch.device("cpu"),
        is_sharded=is_sharded,
        has_blocks=has_blocks,
        config=config,
        plan=plan,
    )


@pytest.mark.parametrize(
    ("given", "typed"),
    [
        ("{effective: 8, micro: 4}", ["batch.micro=2"]),
        (
            "{effective: 8, accumulation_steps: 2}",
            ["batch.micro=2", "batch.accumulation_steps=null"],
        ),
        (
            "{micro: 4, accumulation_steps: 2}",
            ["batch.micro=2", "batch.effective=8", "batch.accumulation_steps=null"],
        ),
        ("{effective: 8, micro: 1}", []),
    ],
)
def test_a_smaller_micro_batch_keeps_the_effective_one(
    tmp_path: Path, given: str, typed: list[str]
) -> None:
    words = argv(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("batch: {effective: 8,", f"batch: {given[:-1]},"))
    loaded = load(words)
    plan = prepare(loaded, "accumulate", Ranks()).plan

    shortage = in_training(torch.OutOfMemoryError(), training(loaded.config, plan))

    assert ("batch.micro=" in shortage.advice) == bool(typed)
    if typed:
        assert f"\n        {' '.join(typed)}   (" in shortage.advice
        other = prepare(load([*words, *typed]), "accumulate", Ranks()).plan
        assert (other.batch.micro, other.batch.effective) == (2, plan.batch.effective)
        assert other.curve_hash == plan.curve_hash


def test_ranks_may_share_what_each_of_them_holds(tmp_path: Path) -> None:
    loaded = load(argv(tmp_path))
    plan = prepare(loaded, "accumulate", Ranks()).plan
    of_two = replace(plan, batch=replace(plan.batch, world_size=2))
    error = torch.OutOfMemoryError()

    alone = in_training(error, training(loaded.config, plan)).advice
    assert "LAUNCHER" not in alone
    assert "activation_checkpointing" not in alone, "the model has no blocks"
    blocks = in_training(error, training(loaded.config, plan, has_blocks=True)).advice
    assert "memory.activation_checkpointing=true   (" in blocks
    assert (
        "LAUNCHER=configs/accelerate/fsdp2.yaml before"
        in in_training(error, training(loaded.config, of_two)).advice
    )
    assert (
        "batch.sync=micro"
        in in_training(error, training(loaded.config, of_two, is_sharded=True)).advice
    )


def test_what_another_rank_has_had_is_said_of_that_one(tmp_path: Path) -> None:
    loaded = load(argv(tmp_path))
    plan = prepare(loaded, "accumulate", Ranks()).plan

    shortage = in_training(
        torch.OutOfMemoryError(f"rank 3: {MESSAGE}"), training(loaded.config, plan)
    )

    assert shortage.headline.startswith("rank 3 ran out of memory in step 1 (the host with ")
    assert shortage.headline.endswith(f"OutOfMemoryError: {MESSAGE}")


def test_before_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the CPU's own allocator: 4 EiB."""
    assert (
        start(
            argv(tmp_path, "model=tests.memory.test_shortage.too_large", "precision=fp32"),
            0,
            "",
            0,
            None,
        )
        == 1
    )

    stderr = capfd.readouterr().err
    assert "Traceback" not in stderr
    assert "rank 0 ran out of memory before the first step (the host with " in stderr
    assert (
        "). RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        in stderr
    )
    assert "precision=bf16" in stderr


def too_large() -> Any:
    return torch.nn.Linear(2**30, 2**30)
