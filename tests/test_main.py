"""What contradicts itself is refused, with numbers and a line to paste; a stop that was asked for is a clean end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.helpers import argv, rows
from train import accumulate, standard
from train.batch.window import Window
from train.config import load
from train.main import main
from train.run import build
from train.step import Learner


def run_main(arguments: list[str], loop: str = "accumulate") -> int:
    return main(arguments, loop, (standard if loop == "standard" else accumulate).compute_gradient)


@pytest.mark.parametrize(
    ("batch", "parts"),
    [
        (("batch.micro=8",), ("batch.micro=8", "share of 32 samples", "into 4")),
        (("batch.accumulation_steps=2",), ("batch.accumulation_steps=2", "share of 32 samples", "into 2")),
    ],
)
def test_the_standard_loop_refuses_to_cut_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    code = run_main(argv(tmp_path, "batch.effective=32", *batch), "standard")

    said = capsys.readouterr().err
    assert code == 2
    assert all(part in said for part in (*parts, "Type: batch.effective=32 batch.micro=all", "train.accumulate"))


def test_numbers_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_main(argv(tmp_path, "batch={effective: 32, micro: 8, accumulation_steps: 2}"))

    assert code == 2
    assert capsys.readouterr().err.strip().endswith("batch.effective=32 batch.micro=8")


def test_a_missing_column_is_told_with_those_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_main(argv(tmp_path, "data.columns={labels: answer}"))

    said = capsys.readouterr().err
    assert code == 2
    assert all(part in said for part in ("labels (as column 'answer')", "inputs, labels", "data.columns={labels: "))


@pytest.mark.parametrize("flag", ["--plan", "--print-config"])
def test_a_question_touches_no_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    def touched(**_: Any) -> None:
        raise AssertionError("a device was touched")

    monkeypatch.setattr("train.setup.Accelerator", touched)
    monkeypatch.setenv("ISOBATCH_WORLD_SIZE", "2")

    code = run_main(argv(tmp_path, "batch.micro=2", flag))

    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    expected = "8 samples = 2 x 4 on 2 ranks, in micro-batches of 2+2" if flag == "--plan" else "effective: 8"
    assert expected in said.out
    assert not (tmp_path / "run").exists()


def build_in(environment: dict[str, str | None], arguments: list[str]) -> str:
    """The refusal of a rank in this environment (None: not set)."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    with pytest.raises(RuntimeError) as refusal:
        build(load(arguments), "accumulate")
    if dist.is_initialized():
        dist.barrier()  # a rank that left now would break off the other's meeting
    return str(refusal.value)


@pytest.mark.parametrize(
    ("world_size", "environment", "expected"),
    [
        (2, {"ACCELERATE_USE_CPU": None}, "2 ranks were asked for by WORLD_SIZE (from the launcher), but 1 met"),
        (1, {"ISOBATCH_WORLD_SIZE": "2"}, "2 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 1 met"),
        (2, {"ISOBATCH_WORLD_SIZE": "3"}, "3 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 2 met"),
        (2, {"ISOBATCH_WORLD_SIZE": "1"}, "1 ranks were asked for by ISOBATCH_WORLD_SIZE (from launch.sh), but 2 met"),
    ],
)
def test_another_number_of_ranks_than_asked_for(
    run_ranks: Any, tmp_path: Path, world_size: int, environment: dict[str, str | None], expected: str
) -> None:
    for said in run_ranks(world_size, build_in, environment, argv(tmp_path)):
        assert said.startswith(expected)
        assert f"NPROC={expected[0]} ./launch.sh" in said


def train_until_told(arguments: list[str], loop: str, told_rank: int, number: int, at: int) -> tuple[int, int]:
    """(exit code, last step trained) where one rank gets a signal in the middle of step `at`."""
    trained = 0

    def compute_gradient(learner: Learner, window: Window) -> Any:
        nonlocal trained
        trained = window.k
        if window.k == at and learner.accelerator.process_index == told_rank:
            os.kill(os.getpid(), number)
        return (standard if loop == "standard" else accumulate).compute_gradient(learner, window)

    return main(arguments, loop, compute_gradient), trained


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("loop", "world_size", "told_rank"), [("standard", 1, 0), ("accumulate", 2, 1)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    run_ranks: Any, tmp_path: Path, loop: str, world_size: int, told_rank: int, number: signal.Signals
) -> None:
    arguments = argv(tmp_path, "duration={epochs: 100}")

    told = run_ranks(world_size, train_until_told, arguments, loop, told_rank, number, 3)

    assert len({trained for _, trained in told}) == 1
    trained = told[0][1]
    assert 3 <= trained <= 5  # the windows are agreed on one step ahead
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert ended["step"] == trained == rows(tmp_path)[-1]["train/global_step"]
    assert ended["reason"] == f"stopped by {number.name}"
    assert ended["code"] == 75
    assert [code for code, _ in told] == [75] * world_size


def test_sigterm_to_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train.accumulate", *argv(tmp_path, "duration={epochs: 1000000}")]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        journal, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 75
    assert said.strip().endswith("stopped by SIGTERM")
    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["code"], ended["step"]) == (75, rows(tmp_path)[-1]["train/global_step"])
