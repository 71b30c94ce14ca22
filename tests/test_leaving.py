"""Save first: an evaluation that fails, at any place, costs no step, and is done first by the next
start.
"""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch import Tensor, nn

from tests.campaigns.faults.compare import differing, digest, rows, state
from tests.helpers import argv
from train.accumulate import compute_gradient
from train.batch.window import Batch, Window
from train.checkpoint.files import MODEL, TENSORS
from train.main import main
from train.step import ComputeGradient, Learner
from train.tasks.classification import Classification

GIVEN = (
    "task=tests.test_leaving.Fragile",
    "data.eval_fraction=0.2",
    "evaluate={every_steps: 3, at_start: true, best: eval/loss}",
    "checkpoint={resume: auto, every_steps: 4}",
    "duration={steps: 7}",
)


class Fragile(Classification):
    """Its metric fails at the evaluation of a number that the environment names, on one rank or on
    all.
    """

    seen = 0

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        at, kind, rank = json.loads(os.environ.get("FRAGILE", "[-1, 0, null]"))
        Fragile.seen += 1
        if Fragile.seen == at and kind == "SIGTERM":
            if rank in (None, int(os.environ.get("RANK", "0"))):
                signal.raise_signal(signal.SIGTERM)
        elif Fragile.seen == at and rank in (None, int(os.environ.get("RANK", "0"))):
            raise {"ValueError": ValueError, "MemoryError": RecursionError, "OSError": OSError}[
                kind
            ]("a metric's own")
        return super().eval_sums(model, batch)


def start(arguments: list[str], fault: str) -> int:
    os.environ["FRAGILE"] = fault
    Fragile.seen = 0
    return main(arguments, "accumulate", compute_gradient)


def last_saved(folder: Path) -> int:
    return max(
        int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-????????")
    )


# Evaluations: at the start, after step 3, after step 6, after step 7. More places: row 39 of the
# campaign of faults.
@pytest.mark.parametrize(
    ("world_size", "at", "kind", "rank", "step"),
    [
        (1, 2, "OSError", None, 3),
        (2, 3, "ValueError", 1, 6),
    ],
)
def test_a_metric_that_fails_costs_no_step(
    run_ranks: Any, tmp_path: Path, world_size: int, at: int, kind: str, rank: int | None, step: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert run_ranks(world_size, start, argv(whole, *GIVEN), "[-1, 0, null]") == [0] * world_size

    # a stack trace
    with contextlib.suppress(AssertionError) if kind == "OSError" else contextlib.nullcontext():
        codes = run_ranks(world_size, start, argv(parts, *GIVEN), json.dumps([at, kind, rank]))
        assert codes == [2] * world_size
    ended = json.loads((parts / "run" / "ended.json").read_text())
    assert "a metric's own" in ended["reason"]
    assert f"Step {step} is saved." in ended["reason"]
    assert (last_saved(parts), ended["step"]) == (step, step)
    assert (parts / "run" / "final" / "model.safetensors").exists() is (step == 7)

    assert run_ranks(world_size, start, argv(parts, *GIVEN), "[-1, 0, null]") == [0] * world_size

    assert not differing(state(whole / "run"), state(parts / "run"))
    evaluated = [row["train/global_step"] for row in rows(parts / "run") if "eval/loss" in row]
    assert evaluated == [0, 3, 6, 7]
    assert json.loads((parts / "run" / "ended.json").read_text())["reason"] == "finished"
    assert not list((parts / "run").glob("best.*"))


# Evaluations have 4 batches on one rank, 2 on each of two.
@pytest.mark.parametrize(
    ("world_size", "at", "rank", "step"),
    [(1, 1, None, 0), (1, 6, None, 3), (2, 7, 1, 7), (2, 3, 1, 3)],
)
def test_a_stop_in_an_evaluation_is_saved_and_the_evaluation_owed(
    run_ranks: Any, tmp_path: Path, world_size: int, at: int, rank: int | None, step: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    given = (*GIVEN, "batch.micro=2")
    assert run_ranks(world_size, start, argv(whole, *given), "[-1, 0, null]") == [0] * world_size

    codes = run_ranks(world_size, start, argv(parts, *given), json.dumps([at, "SIGTERM", rank]))

    assert codes == [75] * world_size
    ended = json.loads((parts / "run" / "ended.json").read_text())
    assert (ended["reason"], ended["step"], last_saved(parts)) == ("stopped by SIGTERM", step, step)
    evaluated = [row["train/global_step"] for row in rows(parts / "run") if "eval/loss" in row]
    assert step not in evaluated, "cut short"
    assert run_ranks(world_size, start, argv(parts, *given), "[-1, 0, null]") == [0] * world_size
    assert not differing(state(whole / "run"), state(parts / "run"))


# In the midst of a step


class Normed(nn.Module):
    """Its running statistics move in each forward pass, and torch counts no version of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits


IN_STEP = (
    "model=tests.test_leaving.Normed",
    "batch.micro=2",
    "data.drop_tail=true",
    "duration={steps: 7}",
    "on_nonfinite=stop",
    "checkpoint.keep=9",
)


def failing_at(step: int) -> ComputeGradient:
    """The gradient of a step fails at its end, for good."""

    def failing(learner: Learner, window: Window) -> Tensor:
        losses = compute_gradient(learner, window)
        if window.k == step:
            raise RecursionError("a step's own")
        return losses

    return failing


def start_failing(starts: list[tuple[list[str], int]]) -> None:
    Accelerator.end_training = lambda self: None  # it would take the process group with it
    for arguments, step in starts:
        with contextlib.suppress(RecursionError):
            main(arguments, "accumulate", failing_at(step))


def test_sys_exit_in_a_step_is_no_success(tmp_path: Path) -> None:
    def leaving(learner: Learner, window: Window) -> Tensor:
        raise SystemExit(0)

    with pytest.raises(SystemExit) as ended:
        main(argv(tmp_path), "accumulate", leaving)

    assert ended.value.code == 1
    assert json.loads((tmp_path / "run" / "ended.json").read_text())["code"] == 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_fails_before_its_update_leaves_the_one_before_it(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    whole, failed, stopped = tmp_path / "whole", tmp_path / "failed", tmp_path / "stopped"
    starts: list[tuple[list[str], int]] = []
    for folder, at, more in ((whole, 0, ""), (failed, 6, ""), (stopped, 0, "data.args.nan=[25]")):
        folder.mkdir()
        every = 1 if folder == whole else 100
        given = (*IN_STEP, f"checkpoint.every_steps={every}", *filter(None, [more]))
        starts.append((argv(folder, *given), at))

    run_ranks(world_size, start_failing, starts)

    for folder, step, why in (
        (failed, 5, "a step's own"),
        (stopped, 3, "on_nonfinite=stop: no update was made"),
    ):
        reason = json.loads((folder / "run" / "ended.json").read_text())["reason"]
        assert why in reason
        assert f"Step {step} is saved." in reason
        name = f"run/checkpoints/step-{step:08}"
        for file in (
            MODEL,
            TENSORS,
            *[f"rank-{rank:05}.safetensors" for rank in range(1, world_size)],
        ):
            assert digest(folder / name / file) == digest(whole / name / file), (
                f"{folder.name}: {file}"
            )
