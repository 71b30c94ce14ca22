"""A run says once that a stop would take longer than it is left, as soon as it has measured that."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.main import main
from train.report.grace import slow_stop
from train.tasks.classification import Classification


def output(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert (
        main(argv(folder, *overrides, "checkpoint.resume=auto"), "accumulate", compute_gradient)
        == 0
    )
    return capsys.readouterr().out


def test_two_steps_and_the_last_save_are_what_a_stop_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    assert not slow_stop(step_seconds=50, save_seconds=20)
    warning = slow_stop(step_seconds=80, save_seconds=3)
    assert "2:43 min or more" in warning
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=326" in warning
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert slow_stop(step_seconds=10, save_seconds=11), "torchrun alone leaves 30 s"
    assert "two batches of an evaluation" in slow_stop(
        step_seconds=1, save_seconds=11, batch_seconds=10
    )


def test_a_slow_evaluation_is_said_when_it_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0.4")
    ours = Classification.eval_sums

    def slow(*args: Any) -> Any:
        time.sleep(0.3)
        return ours(*args)

    monkeypatch.setattr(Classification, "eval_sums", slow)
    given = ("duration.steps=1", "data.eval_fraction=0.1", "evaluate.at_start=true")

    before, _, after = output(tmp_path, capsys, *given).partition(
        "warning   a stop takes two batches of an evaluation"
    )

    assert "step 1/1  loss" not in before
    assert "step 1/1  loss" in after


def test_it_is_said_once_and_not_of_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0.000001")
    before, _, after = output(
        tmp_path, capsys, "duration.steps=4", "checkpoint.every_steps=2"
    ).partition("warning   a stop takes")
    assert "step 2/4  loss" in before
    assert "step 3/4  loss" not in before
    assert "step 3/4  loss" in after
    assert "a stop takes" not in after

    # From the checkpoint it knows, before any step, how long the save before that one took.
    before, _, after = output(tmp_path, capsys, "duration.steps=6").partition(
        "warning   a stop takes"
    )
    assert "resumed" in before
    assert "loss" not in before
    assert "step 6/6  loss" in after
    assert "a stop takes" not in after


def test_nothing_is_said_where_there_is_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    assert "a stop takes" not in output(tmp_path, capsys, "duration.steps=4")
