"""best/ holds the weights of the evaluation that the run knows as its best, wherever it was killed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.batch.window import Batch, Window
from train.config import load
from train.distributed.ranks import Ranks
from train.loop import fit
from train.models.weights import NotSaved
from train.report import best_weights
from train.report.best import Best
from train.report.progress import Progress
from train.run import build
from train.tasks.classification import Classification


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the program runs after it."""


def best(step: int, value: float) -> Best:
    return Best("eval/loss", more_is_better=False, value=value, step=step, last=value)


def write(folder: Path, of: Best) -> None:
    def weights(place: Path) -> None:
        (place / "model.safetensors").write_text(f"weights of {of.step}")

    best_weights.write(folder, of, weights)


def calls(monkeypatch: pytest.MonkeyPatch, at: Callable[[], None]) -> None:
    """`at()` before each call that changes what is on disk."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            at()
            return function(*args, **options)

        return watched

    for owner, name in (
        (os, "fsync"),
        *((Path, name) for name in ("rename", "write_text", "mkdir")),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, around(getattr(owner, name)))


@pytest.mark.usefixtures("leaves_files_open")
@pytest.mark.parametrize("committed", [False, True])
def test_kills_at_every_point(
    tmp_path: Path, committed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best of step 8 is in a checkpoint; those of 15 and 17 come after it, and a checkpoint
    after them, or none.
    """
    points = 0
    while True:
        points += 1
        folder = tmp_path / f"{points}"
        folder.mkdir()
        known = best(8, 2.0)
        left = points

        def at() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        write(folder, known)
        best_weights.forget_before(folder)
        with pytest.MonkeyPatch.context() as patch:
            calls(patch, at)
            try:
                write(folder, best(15, 1.5))
                write(folder, best(17, 1.0))
                if committed:
                    known = best(17, 1.0)
                    best_weights.forget_before(folder)
                killed = False
            except Killed:
                killed = True
        best_weights.settle(folder, known, Ranks(), Progress())
        assert known.value is not None
        assert (folder / "best" / "model.safetensors").read_text() == f"weights of {known.step}"
        assert json.loads((folder / "best" / "best.json").read_text())["value"] == known.value
        assert not (folder / "best.before").exists()
        if not killed:
            break
    assert points >= 20


@pytest.mark.parametrize("damage", ["weights", "no best.json", "gone"])
def test_where_they_are_gone_the_best_begins_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = best(8, 2.0)
    write(tmp_path, known)
    if damage == "weights":
        (tmp_path / "best" / "model.safetensors").write_text("weights of 9")
    elif damage == "gone":
        shutil.rmtree(tmp_path / "best")
    else:
        (tmp_path / "best" / "best.json").unlink()

    best_weights.settle(tmp_path, known, Ranks(), Progress())

    assert known.value is None
    assert not (tmp_path / "best").exists()
    assert (tmp_path / "best.abandoned").exists() is (damage != "gone")
    assert "begins again" in capsys.readouterr().err


def test_a_full_disk_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, best(8, 2.0))

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved, match="No space left"):
        write(tmp_path, best(15, 1.0))

    assert (tmp_path / "best" / "model.safetensors").read_text() == "weights of 8"


# In a run


class Scripted(nn.Module):
    """Counts its steps in a buffer, so that a task can look up what to report."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        outputs: Tensor = self.layer(inputs)
        return outputs


class Told(Classification):
    """Its loss at an evaluation is 8 - the step, but for a peak: the best are at 2, then 5."""

    LOSSES = (9.0, 8.0, 2.0, 7.0, 6.0, 1.0, 5.0, 4.0, 3.0)

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"loss": (self.LOSSES[int(model.steps)], 1)}


GIVEN = (
    "model={target: tests.report.test_best_weights.Scripted, args: {}}",
    "task=tests.report.test_best_weights.Told",
    "data={source: tests.helpers.tiny, args: {size: 10}, eval_fraction: 0.2}",
    "evaluate={every_steps: 1, best: eval/loss}",
    "checkpoint={resume: auto, every_steps: 4}",
    "duration={steps: 8}",
)


def start(folder: Path, *overrides: str, killed_before: int | None = None) -> Any:
    run = build(load(argv(folder, *GIVEN, *overrides)), "accumulate")
    known = replace(run.report.best)

    def watched() -> Iterator[Window]:
        for window in run.windows:
            if window.k == killed_before:
                raise Killed
            yield window

    try:
        fit(replace(run, windows=watched()), run.watch(compute_gradient))
        run.finish()
        run.close("finished", 0)
    except Killed:
        run.folder.release()
    return known


def written_best(folder: Path) -> tuple[int, float]:
    written = json.loads((folder / "run" / "best" / "best.json").read_text())
    return written["step"], written["value"]


@pytest.mark.usefixtures("leaves_files_open")  # a kill closes no file
def test_a_killed_run_has_the_best_that_its_checkpoint_knows(tmp_path: Path) -> None:
    start(tmp_path, killed_before=7)
    weights = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    before = (tmp_path / "run" / "best.before" / "model.safetensors").read_bytes()
    assert written_best(tmp_path) == (5, 1.0)

    known = start(tmp_path, killed_before=5)

    assert (known.step, known.value) == (2, 2.0)
    assert written_best(tmp_path) == (2, 2.0)
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "best.abandoned" / "model.safetensors").read_bytes() == weights
    start(tmp_path)
    assert written_best(tmp_path) == (5, 1.0), "trained again"
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "run" / "best.before").exists()


def test_another_run_that_begins_there_has_a_best_of_its_own(tmp_path: Path) -> None:
    start(tmp_path)

    known = start(
        tmp_path,
        "name=fork",
        "duration={steps: 8}",
        f"checkpoint.resume={tmp_path}/run/checkpoints/step-00000004",
    )

    assert known.value is None
    assert json.loads((tmp_path / "fork" / "best" / "best.json").read_text())["step"] == 5


def test_what_a_checkpoint_has_outlived_goes_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill between the rename of a checkpoint, which knows of step 15, and forget_before."""
    write(tmp_path, best(8, 2.0))
    write(tmp_path, best(15, 1.5))
    assert (tmp_path / "best.before").exists()

    best_weights.settle(tmp_path, best(15, 1.5), Ranks(), Progress())

    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert not any(capsys.readouterr())
