"""What several ranks, or several runs, must not do to each other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.helpers import argv
from train.accumulate import compute_gradient
from train.data import DataError
from train.distributed.ranks import launched_rank
from train.main import main
from train.report import FolderRefused
from train.report.folder_lock import lock_folder

ROOT = Path(__file__).parents[2]


def start(arguments: list[str]) -> int:
    return main(arguments, "accumulate", compute_gradient)


def test_two_runs_of_one_name_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first is another process that has the folder; the second is refused even where it would
    start over.
    """
    assert start(argv(tmp_path, "name=run")) == 0
    holding = (
        "import sys, time; from pathlib import Path; from train.report.folder_lock import lock_folder;"
        "lock = lock_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holding, str(tmp_path / "run")]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    capsys.readouterr()

    code = start(argv(tmp_path, "name=run", "seed=1", "checkpoint.resume=never"))

    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert code == 2
    stderr = capsys.readouterr().err
    assert f"is being trained into by process {holder.pid} on " in stderr
    assert "name=run-2" in stderr
    assert not (tmp_path / "run.1").exists()
    # a lock that its owner has left behind, killed or not, is none
    assert start(argv(tmp_path, "name=run", "seed=1", "checkpoint.resume=never")) == 0


def test_a_lock_ends_with_its_owner_whatever_that_has_forked(tmp_path: Path) -> None:
    holding = (
        "import os, sys, time; from pathlib import Path; from train.report import folder;"
        "path = Path(sys.argv[1]); folder.keep_hold(path, folder.hold_folder(path)); worker = os.fork();"
        "worker and print(worker, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        worker = int(owner.stdout.readline())
        with pytest.raises(FolderRefused, match=f"process {owner.pid}"):
            lock_folder(tmp_path)
        owner.kill()
    try:
        os.close(lock_folder(tmp_path))
    finally:
        os.kill(worker, signal.SIGKILL)


def missing_on_one_rank() -> Dataset:
    if launched_rank() == 1:
        raise DataError("the file is not on this machine")
    return Dataset.from_dict(
        {"inputs": np.zeros((8, 6), np.float32), "labels": np.zeros(8, np.int64)}
    )


def more_on_one_rank() -> Dataset:
    size = 8 + launched_rank()
    return Dataset.from_dict(
        {"inputs": np.zeros((size, 6), np.float32), "labels": np.zeros(size, np.int64)}
    )


def refused(arguments: list[str]) -> str:
    try:
        return str(start(arguments))
    except RuntimeError as error:
        return str(error)


def test_a_refusal_on_one_rank_reaches_all(run_ranks: Any, tmp_path: Path) -> None:
    source = "data={source: tests.report.test_bad_company.missing_on_one_rank}"

    assert run_ranks(2, refused, argv(tmp_path, source, "runtime.timeout_seconds=60")) == ["2", "2"]


def test_ranks_that_read_other_data(run_ranks: Any, tmp_path: Path) -> None:
    source = "data={source: tests.report.test_bad_company.more_on_one_rank}"

    assert run_ranks(2, refused, argv(tmp_path, source)) == ["2", "2"]


def test_an_unfinished_profile_is_written_all_the_same(tmp_path: Path) -> None:
    assert start(argv(tmp_path, "profile.steps=[2,100]", "duration={steps: 4}")) == 0

    assert (tmp_path / "run" / "profile" / "trace.json").stat().st_size > 1000


def test_further_sets_without_a_main_one(tmp_path: Path) -> None:
    assert start(argv(tmp_path, "evaluate.sets={again: train}")) == 0

    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["eval/again/samples"] for row in rows if "eval/again/loss" in row] == [37]


def test_a_failing_smoke_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBATCH_ENDED", str(tmp_path / "ended.json"))

    arguments = argv(
        tmp_path,
        "--smoke",
        "on_nonfinite=stop",
        "optimizer.lr=1e30",
        "task=tests.helpers.Regression",
    )
    code = start(
        [
            *arguments,
            "data.source=tests.helpers.regression",
            "precision=fp32",
            "optimizer.args={momentum: 0.9}",
        ]
    )

    ended = json.loads((tmp_path / "ended.json").read_text())
    assert code == 0  # launch.sh reads the file
    assert ended["code"] == 1
    assert "norm of the gradient" in ended["reason"]


@pytest.mark.parametrize("function", ["open_report", "list_parts"])
def test_an_early_failure_leaves_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(f"train.run.{function}", broken)
    with pytest.raises(OSError, match="no space left"):
        start(argv(tmp_path, "duration={steps: 1}"))

    ended = json.loads((tmp_path / "run" / "ended.json").read_text())
    assert (ended["reason"], ended["code"]) == ("OSError: no space left on device", 1)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere; the message is tested by a file in the way"
)
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert start(argv(tmp_path)) == 2


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")

    arguments = [part for part in argv(tmp_path) if not part.startswith("output_dir")]
    assert start([*arguments, f"output_dir={tmp_path / 'file'}"]) == 2
    assert "Set: output_dir=ANOTHER" in capsys.readouterr().err
