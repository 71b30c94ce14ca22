"""What a second start of the same name does: nothing is ever lost, and each refusal holds the lines
to paste.
"""

import errno
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from train.accumulate import compute_gradient
from train.main import main
from train.report.restarts import MOST_REQUEUES, RESTARTS


def start(output_dir: Path, *overrides: str) -> int:
    argv = [
        "configs/digits.yaml",
        f"output_dir={output_dir}",
        "wandb.mode=disabled",
        "duration.steps=2",
        *overrides,
    ]
    return main(argv, "accumulate", compute_gradient)


@pytest.fixture(name="finished")
def finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert start(tmp_path, "name=run") == 0
    capsys.readouterr()
    return tmp_path


def test_finished_and_the_same(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "run" / "metrics.jsonl").read_bytes()

    code = start(finished, "name=run", "batch.micro=8", "log.every_steps=1")  # execution may differ

    assert code == 0
    assert "holds this very run, finished at step 2" in capsys.readouterr().err
    assert (finished / "run" / "metrics.jsonl").read_bytes() == before


def test_other_mathematics(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = start(finished, "name=run", "seed=1", "optimizer.lr=0.5")

    stderr = capsys.readouterr().err
    assert code == 2
    assert "seed: 0 there, 1 now" in stderr
    assert "optimizer.lr: 0.01 there, 0.5 now" in stderr
    assert "name=run-2" in stderr
    assert "checkpoint.resume=never" in stderr


def rewrite_identity(run: Path, **values: object) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["identity"] |= values
    (run / "plan.json").write_text(json.dumps(plan))


def test_a_run_of_the_first_edition_is_refused_once(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished / "run"
    (run / "ended.json").unlink()
    rewrite_identity(run, code="0123456789abcdef")  # of names and bytes of files

    assert start(finished, "name=run") == 2
    message = capsys.readouterr().err
    assert "holds a run of an earlier version" in message
    assert "code: '0123456789abcdef' there, 'definitions " in message
    assert (
        "This one hashes what\nthey compute: the two hashes cannot be compared. Nothing else "
        "differs." in message
    )
    assert f"checkpoint.resume={run}" in message

    assert start(finished, "name=run", f"checkpoint.resume={run}") == 0
    capsys.readouterr()
    assert start(finished, "name=run") == 0
    assert "holds this very run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "seed"), [("0123456789abcdef", 1), ("definitions 0123456789abcdef", 0)]
)
def test_other_code_or_more_than_code_is_other_mathematics(
    finished: Path, code: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_identity(finished / "run", code=code, seed=seed)

    assert start(finished, "name=run") == 2
    message = capsys.readouterr().err
    assert "with other mathematics" in message
    assert f"code: {code!r} there" in message
    assert "a run of an earlier version" not in message
    assert ("An earlier version wrote it" in message) == (seed == 1), (
        "code of another kind explains itself"
    )


def test_the_lines_to_paste_work(finished: Path) -> None:
    assert start(finished, "name=run-2", "seed=1") == 0
    assert start(finished, "name=run", "seed=1", "checkpoint.resume=never") == 0
    assert start(finished, "name=run", "seed=2", "checkpoint.resume=never") == 0

    assert {path.name for path in finished.iterdir()} == {"run", "run-2", "run.1", "run.2"}
    seeds = [
        json.loads((finished / name / "plan.json").read_text())["identity"]["seed"]
        for name in ("run.1", "run")
    ]
    assert seeds == [0, 2]


def test_unfinished(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / "run" / "ended.json").unlink()
    shutil.rmtree(finished / "run" / "checkpoints")

    assert start(finished, "name=run") == 2
    assert "has not ended, or was killed without a checkpoint" in capsys.readouterr().err

    # the scheduler starts the same job again
    environment = json.loads((finished / "run" / "environment.json").read_text())
    environment["job"] = {"SLURM_JOB_ID": "17"}
    (finished / "run" / "environment.json").write_text(json.dumps(environment))
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert start(finished, "name=run") == 2
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert start(finished, "name=run") == 2  # a second srun in the allocation is not a restart
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert start(finished, "name=run") == 0
    assert (finished / "run.1" / "metrics.jsonl").exists()


def test_a_job_that_is_requeued_without_a_new_checkpoint_stops_and_another_job_goes_on(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished / "run"
    (run / "ended.json").unlink()
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"job": {"SLURM_JOB_ID": "17"}}))
    (run / RESTARTS).write_text(
        json.dumps({"from": "step-00000002", "fruitless": MOST_REQUEUES - 1})
    )
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")

    assert start(finished, "name=run") == 1
    message = capsys.readouterr().err
    assert (
        f"put back into the queue {MOST_REQUEUES} times, and began from step-00000002 each time"
        in message
    )

    monkeypatch.delenv("SLURM_RESTART_COUNT")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert start(finished, "name=run") == 0
    assert not (run / RESTARTS).exists(), "a new job counts from 0"


def test_not_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")

    assert start(tmp_path, "name=run") == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "part", ["evaluation.generations.with_generations", "metrics.mfu._peak_of_all"]
)
def test_whatever_fails_before_the_first_step_is_written_down(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(f"train.{part}", fail)

    with pytest.raises(RuntimeError, match="out of luck"):
        start(tmp_path, "name=run")

    assert "out of luck" in json.loads((tmp_path / "run" / "ended.json").read_text())["reason"]
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_start_that_finds_no_room_ends_what_it_tracks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("train.report.outlets.Journal", Mock(side_effect=full))
    monkeypatch.setattr(
        "train.report.tracker.Tracker.finish", lambda tracker, code: ended.append(code)
    )

    assert start(tmp_path, "name=run") == 2
    assert ended == [1]
    assert json.loads((tmp_path / "run" / "ended.json").read_text())["code"] == 2
    assert not (tmp_path / "run" / "plan.json").exists()
