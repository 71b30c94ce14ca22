"""The run in W&B is ours alone, and its end is said as it was: against a server on the loopback, or
offline.

What runs beside one of the user's own, and on a full disk, is in rows 29b and 29s of the campaign
of faults.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_tracker import clean_environ, in_process, online
from tests.wandb_server import StoredRun, WandbServer
from train.config.schema import Wandb
from train.report.tracker import Tracker


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


def start(folder: str, name: str = "ours", run_id: str | None = None, **wandb: Any) -> Tracker:
    return Tracker.start(
        Wandb(**wandb),
        run_name=name,
        default_group="g",
        job_type="train",
        folder=Path(folder),
        run_config={"a": 1},
        run_id=run_id,
    )


def row(step: int) -> dict[str, float]:
    return {"train/global_step": step, "progress/samples_seen": step, "train/loss": 0.5}


def by_name(server: WandbServer) -> dict[str, StoredRun]:
    return {run.attributes["displayName"]: run for run in server.runs.values()}


# What runs in the other process.


def end(folder: str, codes: list[int]) -> str | None:
    for code in codes:
        tracker = start(folder, f"ended {code}")
        tracker.log(row(1))
        tracker.finish(code)
    return tracker.run_id


def go_on(folder: str) -> None:
    first = start(folder)
    first.log(row(1))
    first.summarise({"ended/reason": "stopped", "run/effective_batch": 100})
    first.finish(75)
    second = start(folder, run_id=first.run_id)
    second.forget_end()
    second.log(row(2))
    second.finish(0)


def beside(folder: str, ways: list[str]) -> dict[str, bool]:
    return {how: _beside(folder, how) for how in ways}


def _beside(folder: str, how: str) -> bool:
    """The user's own code calls wandb.init, then we do; then both log, and both end."""
    import wandb

    reinit = "create_new" if how == "apart" else "default"
    theirs: Any = wandb.init(project="isobatch", name=f"theirs {how}", reinit=reinit)
    tracker = start(folder, f"ours {how}")
    tracker.log(row(1))
    theirs.log({"mine": 1})
    is_global = wandb.run is theirs
    if how == "ends first":
        theirs.finish()
    tracker.log(row(2))
    tracker.finish(75)
    if how != "ends first":
        theirs.log({"mine": 2})
        theirs.finish()
    return is_global


def within(folder: str) -> None:
    """The user's own code uses the run that is open, and ends it too early."""
    import wandb

    tracker = start(folder)
    tracker.log(row(1))
    wandb.log({"mine": 1})
    run: Any = wandb.init()
    run.finish()
    tracker.log(row(2))
    tracker.finish(0)


def in_a_trial(folder: str) -> str:
    import wandb

    from train.errors import UserError

    theirs: Any = wandb.init(name="theirs")
    try:
        start(folder)
    except UserError as error:
        return str(error)
    finally:
        theirs.finish()
    return ""


def on_a_full_disk(folder: str) -> str:
    """From the middle on wandb-core can write no more: a limit on the size of its files, set from
    outside.
    """
    import resource
    import signal
    import time

    import psutil

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tracker = start(folder, mode="offline")
    for step in range(600):
        if step == 300:
            time.sleep(0.5)
            (core,) = [
                child
                for child in psutil.Process().children()
                if child.name().startswith("wandb-core")
            ]
            resource.prlimit(core.pid, resource.RLIMIT_FSIZE, (8192, 8192))
        tracker.log(row(step) | {f"m{number}": number * 1.5 for number in range(40)})
    tracker.finish(0)
    return tracker.how_to_see


# The tests.


def test_a_saved_stop_offline(tmp_path: Path) -> None:
    run_id = in_process(
        end, clean_environ(tmp_path), tmp_path, folder=str(tmp_path), codes=[75]
    ).result

    (log,) = tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=clean_environ(tmp_path)
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [record["type"] for record in records]
    assert kinds.index("preempting") < kinds.index("exit")
    assert records[kinds.index("exit")]["exit"]["exit_code"] == 75


def test_a_run_that_goes_on_has_not_ended(server: WandbServer, tmp_path: Path) -> None:
    ended = in_process(go_on, online(server, tmp_path), tmp_path, folder=str(tmp_path))

    assert ended.stderr == ""
    assert (server.run.summary["train/global_step"], server.run.summary["run/effective_batch"]) == (
        2,
        100,
    )
    assert "ended/reason" not in server.run.summary


def test_a_run_that_other_code_ends_costs_one_warning(server: WandbServer, tmp_path: Path) -> None:
    ended = in_process(within, online(server, tmp_path), tmp_path, folder=str(tmp_path))

    assert {row.get("mine") for row in server.run.history} == {None, 1}
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "other code has ended this run (wandb.finish)" in ended.stderr


def test_in_a_trial_of_a_sweep_there_is_one_run(server: WandbServer, tmp_path: Path) -> None:
    trial = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "trial7", "WANDB_SILENT": "true"}
    ended = in_process(
        in_a_trial, online(server, tmp_path, **trial), tmp_path, folder=str(tmp_path)
    )

    assert (
        "has called wandb.init before the training, and has opened the run trial7" in ended.result
    )
    assert server.run.attributes["displayName"] == "theirs"
    assert server.run.history == []
