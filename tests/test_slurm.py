"""scripts/slurm.sbatch under a stand-in for SLURM: what reaches launch.sh, and what becomes of its
end.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm import Job, Slurm
from tests.slurm.runs import losses, requeued, weights
from train.accumulate import compute_gradient
from train.errors import BAD_CONFIG, STOPPED, exit_code
from train.main import main

ROOT = Path(__file__).parents[1]

# The launcher's own supervisor, over a rank that costs nothing. It saves for a moment once it is
# told to stop, and what was put back into the queue finishes at once.
LAUNCH = f"""#!/usr/bin/env bash
exec {sys.executable} launch.py "$@"
"""
LAUNCHER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from train.launching.command import Command
from train.launching.supervisor import Supervisor
sys.exit(Supervisor(Command([sys.executable, "rank.py", *sys.argv[1:]], {{}}), 20).run())
"""
RANK = """
import json, os, signal, sys, time
def end(reason, code):
    node = os.environ.get("SLURM_STEP_ID") and os.environ["SLURM_NODEID"]
    with open(os.environ["ISOBATCH_ENDED"], "w") as file:
        json.dump({"reason": reason, "code": code, "main": node in (None, "0")}, file)
    note(ended=reason)
    sys.exit(0)
def stop(number, frame):
    time.sleep(0.3)
    end(f"stopped by {signal.Signals(number).name}", 75)
def note(**more):
    said = {"words": sys.argv[1:], **{name: os.environ.get(name) for name in NAMES}, **more}
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps(said) + "\\n")
NAMES = ("SLURM_JOB_ID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "MINE", "HOME")
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
note()
if os.environ.get("SLURM_RESTART_COUNT"):
    end("finished", 0)
if "fails" in sys.argv and os.environ["SLURM_NODEID"] == "1":
    sys.exit(3)
while True:
    signal.pause()
"""
Seen = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(name="clone")
def clone_with_a_cheap_launcher(tmp_path: Path) -> Path:
    clone = tmp_path / "clone"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy2(ROOT / "scripts" / "slurm.sbatch", clone / "scripts")
    for name, text in {"launch.sh": LAUNCH, "launch.py": LAUNCHER, "rank.py": RANK}.items():
        (clone / name).write_text(text)
    (clone / "launch.sh").chmod(0o755)
    return clone


@pytest.fixture(name="slurm")
def slurm_of_two_nodes(tmp_path: Path) -> Iterator[Slurm]:
    with Slurm(tmp_path / "slurm", {"node1": [], "node2": []}) as slurm:
        yield slurm


@pytest.fixture(name="seen")
def what_ranks_wrote_down(clone: Path) -> Seen:
    """Once so many of them have started, or ended."""

    def wait(number: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 10
        file = clone / "seen.jsonl"
        while not file.exists() or len(file.read_text().splitlines()) < number:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return [json.loads(line) for line in file.read_text().splitlines()]

    return wait


def submit(slurm: Slurm, clone: Path, *words: str, **environment: str) -> list[Job]:
    options = [word for word in words if word.startswith("--")]
    others = [word for word in words if not word.startswith("--")]
    env = {"PATH": "/usr/bin:/bin", **environment}
    return slurm.sbatch(*options, "scripts/slurm.sbatch", *others, cwd=clone, env=env)


def test_the_time_limit_of_one_task_of_an_array_requeues_that_one_alone(
    slurm: Slurm, clone: Path, seen: Seen
) -> None:
    tasks = submit(slurm, clone, "--array=3-5", "my.yaml", "seed=%a", "name=run-%a")
    assert sorted(told["words"] for told in seen(3)) == [
        ["my.yaml", f"seed={seed}", f"name=run-{seed}"] for seed in (3, 4, 5)
    ]

    last = tasks[-1]  # whose number is that of the array
    slurm.near_time_limit(last)

    assert slurm.wait(last) == "COMPLETED"
    assert (slurm.folder / "scontrol.log").read_text() == "requeue 77_5\n"
    assert [task.restarts for task in tasks] == [0, 0, 1]
    assert last.output.name == "slurm-77_5.out"
    assert "job 77_5 goes back into the queue" in last.output.read_text()
    assert "scontrol requeue failed" not in last.output.read_text()


def test_several_nodes(slurm: Slurm, clone: Path, seen: Seen) -> None:
    """CPUs and environment reach the step; the signal reaches each node; one of them requeues."""
    (job,) = submit(
        slurm, clone, "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=3", "my.yaml", MINE="yes"
    )
    told = seen(2)
    assert sorted((of["SLURM_NODEID"], of["MINE"], of["words"][0]) for of in told) == [
        ("0", "yes", "my.yaml"),
        ("1", "yes", "my.yaml"),
    ]
    (step,) = map(json.loads, (slurm.folder / "steps.jsonl").read_text().splitlines())
    assert (step["cpus_per_task"], step["tasks"]) == (3, 2)

    slurm.near_time_limit(job)

    assert slurm.wait(job) == "COMPLETED"
    ended = [of["ended"] for of in seen(8) if "ended" in of]
    assert ended == ["stopped by SIGUSR1"] * 2 + ["finished"] * 2
    assert (slurm.folder / "scontrol.log").read_text() == "requeue 77\n"


def test_a_trial_of_a_sweep_is_left_to_its_agent(slurm: Slurm, clone: Path, seen: Seen) -> None:
    (job,) = submit(slurm, clone, "my.yaml", WANDB_SWEEP_ID="sweep1")
    seen(1)

    slurm.near_time_limit(job)

    assert slurm.wait(job) == "FAILED"
    assert job.process
    assert job.process.returncode == STOPPED
    assert not (slurm.folder / "scontrol.log").exists()


@pytest.mark.parametrize("how", ["scancel", "TERM to the batch shell"])
def test_a_stop_of_several_nodes_is_saved_and_not_requeued(
    how: str, slurm: Slurm, clone: Path, seen: Seen
) -> None:
    (job,) = submit(slurm, clone, "--nodes=2", "my.yaml")
    seen(2)

    if how == "scancel":
        slurm.scancel(job)
        assert [of["ended"] for of in seen(4)[2:]] == ["stopped by SIGTERM"] * 2
    else:
        slurm.scancel(job, "TERM", batch=True)
        time.sleep(0.5)
        slurm.near_time_limit(job)
        assert slurm.wait(job) == "COMPLETED"
        assert [of["ended"] for of in seen(4)[2:4]] == ["stopped by SIGUSR1"] * 2

    asked = slurm.folder / "scontrol.log"
    assert asked.exists() == (how != "scancel")


def test_a_node_that_fails_leaves_the_others_their_time(
    slurm: Slurm, clone: Path, seen: Seen
) -> None:
    """Whatever the cluster says of KillOnBadExit and WaitTime; and what sbatch does not export,
    srun has to.
    """
    (job,) = submit(slurm, clone, "--nodes=2", "--export=NONE", "my.yaml", "fails")
    assert all(of["HOME"] for of in seen(2))
    time.sleep(1.5)

    slurm.near_time_limit(job)

    assert seen(3)[2]["ended"] == "stopped by SIGUSR1"
    assert slurm.wait(job) == "COMPLETED"
    assert "Exited with exit code 1" in job.output.read_text()


def test_a_script_that_is_submitted_elsewhere_says_so(slurm: Slurm, clone: Path) -> None:
    (job,) = slurm.sbatch(
        "slurm.sbatch", "my.yaml", cwd=clone / "scripts", env={"PATH": "/usr/bin:/bin"}
    )

    assert slurm.wait(job) == "FAILED"
    assert "there is no launch.sh" in job.output.read_text()


def test_a_job_that_is_requeued_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """On one node; on two: row 62 of the campaign of faults."""
    steps = ("duration.steps=150", "log.every_steps=1")
    whole = [
        "configs/digits.yaml",
        *steps,
        "name=run",
        f"output_dir={tmp_path / 'whole'}",
        "wandb.mode=disabled",
    ]
    assert main(whole, "accumulate", compute_gradient) == 0

    run = requeued(tmp_path, 1, (*steps, "wandb.mode=offline"), Slurm.near_time_limit)

    assert losses(run) == losses(tmp_path / "whole" / "run")
    assert weights(run) == weights(tmp_path / "whole" / "run")
    of_wandb = list((run / "wandb").glob("offline-run-*"))
    assert (len(of_wandb), len({folder.name.split("-")[-1] for folder in of_wandb})) == (2, 1)


@pytest.mark.parametrize(("code", "expected"), [(STOPPED, 0), (BAD_CONFIG, BAD_CONFIG)])
def test_a_rank_of_another_machine_tells_its_own_launch_and_fails_where_it_may_be_alone_with_it(
    code: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBATCH_ENDED", str(tmp_path / "ended.json"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "2")

    assert exit_code("reason", code, 5) == expected
    told = json.loads((tmp_path / "ended.json").read_text())
    assert (told["code"], told["main"]) == (code, False)
