"""scripts/slurm.sbatch with stand-ins for srun and scontrol: a stopped job is put back into the queue.

What SLURM itself does (that --signal reaches the batch shell, that srun hands signals on) is taken for granted here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.errors import BAD_CONFIG, STOPPED, exit_code

ROOT = Path(__file__).parents[1]

SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"; woken=yes' USR1
for pid in "${pids[@]}"; do
    while woken=''; wait "$pid" && code=0 || code=$?; [[ $woken ]]; do :; done
    echo "$code" >>codes
done
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >>scontrol.log
if [[ $1 == show ]]; then echo localhost; fi
"""


@pytest.fixture(name="job")
def job_environment(tmp_path: Path) -> dict[str, str]:
    """A clone to submit from, and what SLURM would put into the environment of a job there."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copy2(ROOT / "launch.sh", tmp_path)
    for name in ("scripts", "configs", "train"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "ACCELERATE_USE_CPU": "true",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "GPUS_PER_NODE": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "trial"), [(1, ""), (2, ""), (1, "sweep1")])
def test_the_time_limit_saves_and_requeues(nodes: int, trial: str, tmp_path: Path, job: dict[str, str]) -> None:
    """Once: a trial of `wandb agent` was marked as preempted, and W&B hands it out again."""
    rows = tmp_path / "runs" / "run" / "metrics.jsonl"
    options = ["name=run", "duration.steps=10000000", "wandb.mode=disabled"]
    command = ["bash", "scripts/slurm.sbatch", "configs/digits.yaml", *options]
    environ = {**job, "SLURM_JOB_NUM_NODES": str(nodes), "WANDB_SWEEP_ID": trial}
    process = subprocess.Popen(command, cwd=tmp_path, env=environ)
    try:
        deadline = time.monotonic() + 90
        while not (rows.exists() and "train/loss" in rows.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

        process.send_signal(signal.SIGUSR1)
        code = process.wait(60)
    finally:
        process.kill()

    ended = json.loads((tmp_path / "runs" / "run" / "ended.json").read_text())
    assert (ended["reason"], ended["code"]) == ("stopped by SIGUSR1", 75)
    assert list((tmp_path / "runs" / "run" / "checkpoints").glob("step-*"))
    asked = tmp_path / "scontrol.log"
    requeued = asked.read_text().count("requeue 77\n") if asked.exists() else 0
    assert requeued == (0 if trial else 1)
    if nodes == 1:
        assert code == 75
    else:
        assert (tmp_path / "codes").read_text().split() == ["75", "75"]


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
