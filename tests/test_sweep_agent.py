"""A sweep as it is typed: `wandb sweep`, `wandb agent`, launch.sh and ranks, each in processes of their own."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.house.fresh_copy import active_environment, copy_repository
from tests.report.test_tracker import online
from tests.wandb_server import StoredSweep, WandbServer

pytestmark = pytest.mark.slow
WALL_LIMIT_SECONDS = 240


@dataclass(frozen=True)
class Desk:
    """A clone, and somebody who types in it, logged in to the server."""

    clone: Path
    server: WandbServer

    @property
    def environ(self) -> dict[str, str]:
        active = active_environment()
        return online(self.server, self.clone.parent, PATH=active["PATH"], VIRTUAL_ENV=active["VIRTUAL_ENV"])

    def sweep(self, **parameters: Any) -> StoredSweep:
        """`wandb sweep` of configs/sweeps/accumulation.yaml, with other parameters."""
        path = self.clone / "sweep.yaml"
        said = yaml.safe_load((self.clone / "configs" / "sweeps" / "accumulation.yaml").read_text())
        path.write_text(yaml.safe_dump(said | {"parameters": parameters}, sort_keys=False))
        done = self.type(sys.executable, "-m", "wandb", "sweep", "sweep.yaml")
        sweep = list(self.server.sweeps.values())[-1]
        assert f"wandb agent tester/isobatch/{sweep.name}" in done.stderr
        return sweep

    def agent(self, sweep: StoredSweep, *options: str, **environ: str) -> None:
        self.type(sys.executable, "-m", "wandb", "agent", *options, f"tester/isobatch/{sweep.name}", **environ)

    def type(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            **{"cwd": self.clone, "env": self.environ | environ, "timeout": WALL_LIMIT_SECONDS},
            **{"capture_output": True, "text": True, "check": False},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clone = tmp_path / "clone"
    copy_repository(clone)
    with WandbServer() as server:
        yield Desk(clone, server)


@pytest.mark.timeout(600)
def test_trials_on_one_rank_and_on_two(desk: Desk) -> None:
    sizes = [100, 50, 25]
    fixed = {"precision": {"value": "fp64"}, "duration.steps": {"value": 3}, "log.every_steps": {"value": 1}}
    sweep = desk.sweep(**{"batch.micro": {"values": sizes}, **fixed})

    desk.agent(sweep, "--count", "2")
    desk.agent(sweep, NPROC="2")

    runs = [desk.server.runs["isobatch", run_id] for run_id in sweep.started]
    assert len(runs) == len(desk.server.runs) == 3
    assert [run.attributes["sweep"] for run in runs] == [sweep.name] * 3
    assert [run.state for run in runs] == ["finished"] * 3
    assert [run.config["batch.micro"] for run in runs] == sizes  # the sweep's own name of the parameter
    assert [run.config["batch"]["micro"] for run in runs] == sizes
    assert [run.config["derived"]["micro_batch"] for run in runs] == sizes
    assert [run.config["derived"]["world_size"] for run in runs] == [1, 1, 2]
    assert [len([row for row in run.history if "train/loss" in row]) for run in runs] == [3, 3, 3]
    names = [run.attributes["displayName"] for run in runs]
    assert names == [
        f"digits-micro{size}-steps3-precision_fp64-{run.id}" for size, run in zip(sizes, runs, strict=True)
    ]
    assert {folder.name for folder in (desk.clone / "runs").iterdir()} == set(names)
    assert desk.server.unknown == set()

    paths = [f"tester/isobatch/{run.id}" for run in runs]
    done = desk.type(sys.executable, "scripts/compare.py", *paths, "--json", "--assert-equal", "1e-10")
    assert json.loads(done.stdout)["same_mathematics"]


def test_a_trial_that_is_stopped_in_wandb_is_saved(desk: Desk) -> None:
    """The agent sends SIGTERM to the command alone, not to what that has started."""
    sweep = desk.sweep(**{"batch.micro": {"values": [100, 50]}, "duration.steps": {"value": 10**6}})
    command = [sys.executable, "-m", "wandb", "agent", f"tester/isobatch/{sweep.name}"]
    family: list[psutil.Process] = []
    with (desk.clone / "out").open("w") as out:
        agent = subprocess.Popen(command, cwd=desk.clone, env=desk.environ, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + WALL_LIMIT_SECONDS
            while not (desk.server.runs and desk.server.run.history) and time.monotonic() < deadline:
                time.sleep(0.2)
            family = psutil.Process(agent.pid).children(recursive=True)
            sweep.stopped = True
            assert agent.wait(60) == 0, (desk.clone / "out").read_text()
            assert psutil.wait_procs(family, 10)[1] == []
        finally:
            for process in [*family, agent]:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    (folder,) = (desk.clone / "runs").iterdir()
    ended = json.loads((folder / "ended.json").read_text())
    assert (ended["reason"], ended["code"]) == ("stopped by SIGTERM", 75)
    assert list((folder / "checkpoints").iterdir())
    assert len(sweep.started) == 1
