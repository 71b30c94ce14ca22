"""wandb.log_model: what arrives of a run's final weights, and what a W&B that does not take them
costs.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import argv
from tests.report.test_tracker import clean_environ, in_process, make_trouble, online
from tests.wandb_server import WandbServer
from train.report.tracker import Tracker
from train.report.weights import _send


def train(folder: str, mode: str, *more: str) -> dict[str, Any]:
    import contextlib
    import io

    from train.accumulate import compute_gradient
    from train.main import main

    screen = io.StringIO()
    with contextlib.redirect_stdout(screen):
        code = main(
            argv(Path(folder), f"wandb={{mode: {mode}}}", *more), "accumulate", compute_gradient
        )
    return {"code": code, "screen": screen.getvalue()}


def log_model(folder: str, mode: str) -> dict[str, Any]:
    return train(folder, mode, "wandb.log_model=true")


def test_final_weights_arrive(tmp_path: Path) -> None:
    with WandbServer() as server:
        ended = in_process(
            log_model, online(server, tmp_path), tmp_path, folder=str(tmp_path), mode="online"
        )

        assert (ended.result["code"], ended.stderr, server.unknown) == (0, "", set())
        assert "goes to W&B" in ended.result["screen"]
        (artifact,) = server.artifacts
        assert (artifact["artifactTypeName"], artifact["state"]) == ("model", "COMMITTED")
        assert artifact["artifactCollectionName"] == f"model-{server.run.id}"
        assert artifact["runName"] == server.run.id
        weights = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
        assert server.uploads["/artifacts/0/model.safetensors"] == weights
        assert server.run.state == "finished"
        assert server.run.summary["ended/reason"] == "finished"


@pytest.mark.parametrize("current", [".", "elsewhere"])
def test_nobody_learns_where_the_run_folder_is(tmp_path: Path, current: str) -> None:
    outputs, cwd = tmp_path / "home-of-alice", tmp_path / current
    outputs.mkdir()
    cwd.mkdir(exist_ok=True)
    with WandbServer() as server:
        ended = in_process(
            log_model, online(server, tmp_path), cwd, folder=str(outputs), mode="online"
        )

        assert (ended.result["code"], ended.stderr) == (0, "")
        manifest = server.uploads["/artifacts/0/wandb_manifest.json"]
        assert b"model.safetensors" in manifest
        assert b"alice" not in manifest
        # the link to it is gone, not the file
        assert (outputs / "run" / "final" / "model.safetensors").exists()


def test_off_by_default(tmp_path: Path) -> None:
    with WandbServer() as server:
        ended = in_process(
            train, online(server, tmp_path), tmp_path, folder=str(tmp_path), mode="online"
        )

        assert (ended.result["code"], server.artifacts) == (0, [])
        assert not [path for path in server.uploads if "safetensors" in path]


def test_a_server_that_does_not_take_them_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(WandbServer, "_on_CreateArtifactFiles")
    with WandbServer() as server:
        ended = in_process(
            log_model, online(server, tmp_path), tmp_path, folder=str(tmp_path), mode="online"
        )

        assert ended.result["code"] == 0
        assert ended.stderr.startswith(
            f"W&B: {tmp_path / 'run' / 'final'} was not sent (ValueError: "
        )
        assert ended.stderr.count("\n") == 1
        assert (server.run.state, server.run.summary["ended/reason"]) == ("finished", "finished")


def test_offline_they_are_sent_by_wandb_sync(tmp_path: Path) -> None:
    ended = in_process(
        log_model, clean_environ(tmp_path), tmp_path, folder=str(tmp_path), mode="offline"
    )
    assert (ended.result["code"], ended.stderr) == (0, "")
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")

    with WandbServer() as server:
        command = [sys.executable, "-m", "wandb", "sync", str(run)]
        typed = {
            "cwd": tmp_path,
            "env": online(server, tmp_path),
            "capture_output": True,
            "timeout": 60,
        }
        subprocess.run(command, check=True, **typed)

        weights = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
        assert server.uploads["/artifacts/0/model.safetensors"] == weights


def test_an_untracked_run_says_nothing_of_it(tmp_path: Path) -> None:
    ended = in_process(
        log_model, clean_environ(tmp_path), tmp_path, folder=str(tmp_path), mode="disabled"
    )

    assert (ended.result["code"], ended.stderr) == (0, "")
    assert "goes to W&B" not in ended.result["screen"]


def dead(folder: str) -> dict[str, Any]:
    """log_model after wandb-core has gone."""
    import contextlib
    import io
    import time

    from train.config.schema import Wandb
    from train.report import weights
    from train.report.tracker import Tracker

    settings = {"run_name": "run", "default_group": "group", "job_type": "train", "run_config": {}}
    tracker = Tracker.start(Wandb(mode="offline"), folder=Path(folder), **settings)
    with contextlib.redirect_stderr(io.StringIO()):
        make_trouble("kill")
        tracker.log({"progress/samples_seen": 1.0})
        deadline = time.monotonic() + 30
        while not tracker.failed and time.monotonic() < deadline:
            time.sleep(0.1)
    line = weights.log_model(tracker, Path(folder))
    seconds = tracker.finish_seconds
    tracker.finish(0)
    return {"line": line, "finish_seconds": seconds}


def test_nothing_is_promised_of_a_dead_tracker(tmp_path: Path) -> None:
    ended = in_process(dead, clean_environ(tmp_path), tmp_path, folder=str(tmp_path))

    assert ended.result == {"line": "", "finish_seconds": 60.0}


def test_a_failed_upload_is_reported_after_another_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker()
    tracker.warn_once("something else")

    _send(tracker, object(), tmp_path)  # what has no id is no run

    first, second = capsys.readouterr().err.splitlines()
    assert (first, second.startswith(f"W&B: {tmp_path} was not sent (AttributeError: ")) == (
        "W&B: something else",
        True,
    )
