"""A sweep as it is typed: `wandb sweep`, `wandb agent`, launch.sh and ranks, each in processes of
their own.
"""

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
        return online(
            self.server, self.clone.parent, PATH=active["PATH"], VIRTUAL_ENV=active["VIRTUAL_ENV"]
        )

    def sweep(self, **parameters: Any) -> StoredSweep:
        """`wandb sweep` of configs/sweeps/accumulation.yaml, with other parameters."""
        path = self.clone / "sweep.yaml"
        said = yaml.safe_load((self.clone / "configs" / "sweeps" / "accumulation.yaml").read_text())
        path.write_text(yaml.safe_dump(said | {"parameters": parameters}, sort_keys=False))
        done = self.type(sys.executable, "-m", "wandb", "sweep", "sweep.yaml")
        sweep = list(self.server.sweeps.values())[-1]
        assert f"wandb agent tester/isobatch/{sweep.name}" in done.stderr
        return sweep

    def agent(self, sweep: StoredSweep, ranks: int) -> psutil.Popen:
        """`wandb agent`, which goes on until nothing is left of the sweep; each trial on so many
        ranks.
        """
        command = [sys.executable, "-m", "wandb", "agent", f"tester/isobatch/{sweep.name}"]
        with (self.clone / f"agent-{ranks}").open("w") as out:
            environ = self.environ | {"NPROC": str(ranks)}
            return psutil.Popen(command, cwd=self.clone, env=environ, stdout=out, stderr=out)

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


@pytest.mark.timeout(300)
def test_an_array_of_agents(desk: Desk) -> None:
    """Two of one sweep at the same time, on one rank and on two: a trial finishes, one that is
    stopped is saved.

    An agent sends SIGTERM to the command alone, not to what that has started.
    """
    fixed = {
        "precision": {"value": "fp64"},
        "batch.micro": {"value": 50},
        "log.every_steps": {"value": 1},
    }
    sweep = desk.sweep(**{"duration.steps": {"values": [10**6, 3]}, **fixed})
    agents = [desk.agent(sweep, ranks) for ranks in (1, 2)]
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + WALL_LIMIT_SECONDS
        while not one_finished_and_one_trains(desk.server) and time.monotonic() < deadline:
            time.sleep(0.2)
        family = [child for agent in agents for child in agent.children(recursive=True)]
        sweep.stopped = True
        ended = [agent.wait(60) for agent in agents]
        assert psutil.wait_procs(family, 10)[1] == []
    finally:
        for process in [*family, *agents]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    told = "".join((desk.clone / f"agent-{ranks}").read_text() for ranks in (1, 2))
    assert ended == [0, 0], told
    long, short = (desk.server.runs["isobatch", run_id] for run_id in sweep.started)
    assert [run.attributes["sweep"] for run in (long, short)] == [sweep.name] * 2
    assert [run.state for run in (long, short)] == ["preempted", "finished"], told
    assert {run.config["derived"]["world_size"] for run in (long, short)} == {1, 2}
    # the sweep's name of the parameter
    assert [run.config["duration.steps"] for run in (long, short)] == [10**6, 3]
    assert [run.config["derived"]["micro_batch"] for run in (long, short)] == [50, 50]
    assert len([row for row in short.history if "train/loss" in row]) == 3
    # Each has a folder of its own, which has its id.
    names = [run.attributes["displayName"] for run in (long, short)]
    assert {folder.name for folder in (desk.clone / "runs").iterdir()} == set(names)
    assert [name.rpartition("-")[2] for name in names] == sweep.started
    ends = [json.loads((desk.clone / "runs" / name / "ended.json").read_text()) for name in names]
    assert [(end["reason"], end["code"]) for end in ends] == [
        ("stopped by SIGTERM", 75),
        ("finished", 0),
    ]
    assert list((desk.clone / "runs" / names[0] / "checkpoints").iterdir())
    assert desk.server.unknown == set()


def one_finished_and_one_trains(server: WandbServer) -> bool:
    runs = list(server.runs.values())
    return (
        len(runs) == 2
        and "finished" in [run.state for run in runs]
        and all(run.history for run in runs)
    )
