"""entity/project/run: a run that was tracked comes back as it was, through wandb.Api; one that was
synced later too.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.comparison.folders import make_run
from tests.report.test_tracker import Ended, clean_environ, in_process, online
from tests.wandb_server import StoredRun, WandbServer
from train.comparison.online import from_wandb, read_wandb
from train.comparison.read import load_runs
from train.comparison.run import Run
from train.metric_names import EFFECTIVE_SIZE
from train.report.wandb_run import ONLY_CURVES

MEASURED = (
    "time/",
    "throughput/",
    "memory/",
    "progress/hours",
    "run/samples_per_second",
    "run/peak_rss_gib",
    "exact/audit_seconds",
    "_",
)
"""How keys begin that differ from run to run."""

# What runs in the other process.


def train(folder: str, *more: str) -> int:
    from train.accumulate import compute_gradient
    from train.main import main

    config = Path(__file__).parents[2] / "configs" / "digits.yaml"
    argv = [str(config), f"output_dir={folder}", "name=tracked", "log.every_steps=2", *more]
    return main(argv, "accumulate", compute_gradient)


def train_and_compare(folder: str) -> dict[str, Any]:
    """Trains while tracked, and reads the run back; goes on with it, and begins another one from
    it.
    """
    from train.compare import main

    out = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        code = train(folder, "wandb.mode=online", "duration.steps=30")
    run_id = next(iter(Path(folder, "tracked", "wandb").glob("run-*"))).name.split("-")[2]
    with contextlib.redirect_stdout(out):
        path = f"tester/isobatch/{run_id}"
        compared = main([f"{folder}/tracked", path, "--json", "--assert-equal", "1e-12"])
        missing = main(["tester/isobatch/missing"])
    with contextlib.redirect_stdout(io.StringIO()):
        longer = train(folder, "wandb.mode=online", "duration.steps=32")
        begun = ["name=begun", f"checkpoint.resume={folder}/tracked", "duration.steps=34"]
        other = train(folder, "wandb.mode=online", *begun)
    extended = read_wandb(path)
    return {
        "codes": [code, compared, missing, longer, other],
        "id": run_id,
        "result": json.loads(out.getvalue()),
        "changes": extended.changes if isinstance(extended, Run) else [extended],
        "ended": extended.ended if isinstance(extended, Run) else None,
    }


def train_offline(folder: str, same_second: bool) -> str:
    """In two starts; the line to type, as the head of the second one says it."""
    if same_second:
        import wandb

        wandb.Settings.timespec = property(lambda _: "20261129_192458")  # type: ignore[method-assign]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        codes = [
            train(folder, "wandb.mode=offline", f"duration.steps={steps}") for steps in (30, 32)
        ]
    assert codes == [0, 0]
    return out.getvalue().rpartition("W&B ")[2].partition("\n")[0].strip()


# The tests.


@pytest.fixture(scope="module", name="tracked")
def tracked_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WandbServer, Ended]]:
    home = tmp_path_factory.mktemp("online")
    with WandbServer() as server:
        yield server, in_process(train_and_compare, online(server, home), home, folder="runs")


def run_of(tracked: tuple[WandbServer, Ended]) -> StoredRun:
    server, ended = tracked
    return server.runs["isobatch", ended.result["id"]]


def test_a_tracked_run_is_equal_to_its_folder(tracked: tuple[WandbServer, Ended]) -> None:
    _, ended = tracked
    run = run_of(tracked)
    summary = run.summary

    assert ended.result["codes"] == [0, 0, 2, 0, 0], ended.stderr
    assert ended.result["ended"] == "finished"
    assert ended.result["changes"] == ["after step 30: duration.steps 30 -> 32"]
    assert (summary["ended/reason"], summary["ended/step"], summary["best/step"]) == (
        "finished",
        32,
        32,
    )
    assert summary["best/accuracy"] == summary["eval/accuracy"]
    assert (summary["progress/samples_seen"], summary["train/skipped_steps"]) == (3076, 0)
    assert summary["progress/hours"] > 0
    # Some steps had 38 samples: history has them, a table of runs has the run's 100.
    assert 38 in [row.get(EFFECTIVE_SIZE) for row in run.history]
    assert summary["run/effective_batch"] == run.config["derived"]["effective_batch"] == 100
    assert not set(ONLY_CURVES) & summary.keys()
    result = ended.result["result"]
    assert result["agreements"][0]["rows"] == 15
    assert result["agreements"][0]["largest"] == 0
    assert result["same_mathematics"]
    assert result["differing_keys"] == []
    assert len(result["set_ups"]) == 1
    assert "W&B says" in ended.stderr


def test_a_run_that_begins_from_another_is_one_of_its_own(
    tracked: tuple[WandbServer, Ended],
) -> None:
    server, _ = tracked
    names = {run.attributes["displayName"]: run for run in server.runs.values()}
    assert list(names) == ["tracked", "begun"]
    assert [row["train/global_step"] for row in names["begun"].history if "train/loss" in row] == [
        34
    ]
    assert run_of(tracked).summary["train/global_step"] == 32


@pytest.mark.parametrize("same_second", [False, pytest.param(True, id="two starts in one second")])
def test_a_run_that_is_synced_later_is_the_same(
    tracked: tuple[WandbServer, Ended], tmp_path: Path, same_second: bool
) -> None:
    said = {"folder": "runs", "same_second": same_second}
    line = in_process(train_offline, clean_environ(tmp_path), tmp_path, **said).result
    assert line.startswith("wandb sync runs/tracked/wandb/offline-run-*-")

    with WandbServer() as server:
        beside = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environ = online(server, tmp_path, **beside)
        subprocess.run(line, shell=True, cwd=tmp_path, env=environ, check=True, capture_output=True)
        synced, direct = server.run, run_of(tracked)

    assert known(synced.summary) == known(direct.summary)
    assert [known(row) for row in synced.history] == [known(row) for row in direct.history]
    assert synced.config["derived"] == direct.config["derived"]
    differ = {key for key in direct.config if synced.config[key] != direct.config[key]}
    assert differ <= {"wandb", "output_dir", "environment", "_wandb"}


def known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(MEASURED)}


def test_what_is_no_run_of_ours_is_reported(tmp_path: Path) -> None:
    (run,) = load_runs([str(make_run(tmp_path / "run"))]).runs

    assert "no `derived` block" in str(from_wandb("e/p/r", "name", "finished", {"lr": 1}, run.rows))
    assert "no row" in str(
        from_wandb("e/p/r", "name", "finished", {"derived": dict(run.derived)}, ())
    )
