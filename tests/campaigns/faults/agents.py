"""Rows about plain torchrun and `accelerate launch`, told to restart ranks that fail, without
launch.sh above them.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.faults import compare
from tests.campaigns.faults.launching import ROOT, STEPS, ours
from tests.campaigns.faults.row import Row, folder

AGENTS = {
    "torchrun": "torchrun --standalone --nproc_per_node 2 --max_restarts 2",
    "accelerate": (
        "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0 --max_restarts 2"
    ),
}


@dataclass(frozen=True)
class Trial:
    agent: str
    fault: str
    """TERM or KILL"""
    victim: str
    """agent or rank"""
    workers: int = 0

    @property
    def name(self) -> str:
        return f"{self.fault} to the {self.victim} of {self.agent}, {self.workers} workers"


QUICK = (Trial("torchrun", "KILL", "agent", workers=1), Trial("accelerate", "TERM", "rank"))
TRIALS = [
    Trial(agent, fault, victim, workers)
    for agent in AGENTS
    for fault, victim in (("TERM", "agent"), ("TERM", "rank"), ("KILL", "agent"))
    for workers in (0, 1)
]


def start(here: Path, trial: Trial) -> subprocess.Popen[str]:
    program, *words = AGENTS[trial.agent].split()
    command = [
        str(Path(sys.executable).parent / program),
        *words,
        "-m",
        "train.accumulate",
        "configs/digits.yaml",
    ]
    command += [
        *STEPS,
        f"output_dir={here}",
        "duration.steps=1000000",
        f"data.workers={trial.workers}",
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ISOBATCH_")
    }
    environment |= {
        "TMPDIR": str(here),
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (here / "out.txt").open("w") as out:  # the process has its own copy
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, text=True
        )


def ended(here: Path, trial: Trial) -> tuple[float, int]:
    """(seconds from the fault until nothing is left, exit code of the agent)"""
    started = start(here, trial)
    try:
        pids = _ranks(here, started)
        time.sleep(random.uniform(0, 1))
        begun = time.monotonic()
        number = signal.SIGTERM if trial.fault == "TERM" else signal.SIGKILL
        os.kill(started.pid if trial.victim == "agent" else random.choice(pids), number)
        while ours(here) and time.monotonic() - begun < 20:
            started.poll()
            time.sleep(0.1)
        took = time.monotonic() - begun
        left = [" ".join(process.cmdline())[:80] for process in ours(here)]
    finally:
        for process in ours(here):
            process.kill()
        code = started.wait()
    assert not left, f"{trial.name}: orphans after {took:.0f} s: {left}"
    return took, code


def _ranks(here: Path, started: subprocess.Popen[str]) -> list[int]:
    """Their processes, as soon as they take steps."""
    end = time.monotonic() + 120
    while not ((here / "run" / "metrics.jsonl").exists() and len(compare.rows(here / "run")) > 2):
        assert started.poll() is None, (here / "out.txt").read_text()
        assert time.monotonic() < end, "it does not start"
        time.sleep(0.1)
    found = [
        process.pid
        for process in ours(here)
        if process.ppid() == started.pid and "RANK" in process.environ()
    ]
    assert len(found) == 2, f"{len(found)} ranks"
    return found


def stops(here: Path, full: bool) -> str:
    random.seed(36)
    worst = 0.0
    codes: dict[str, set[int]] = {"TERM": set(), "KILL": set()}
    trials = [trial for _ in range(10) for trial in TRIALS] if full else QUICK
    for number, trial in enumerate(trials):
        own = folder(here, str(number))
        took, code = ended(own, trial)
        out = (own / "out.txt").read_text()
        told = json.loads((own / "run" / "ended.json").read_text())
        assert told["code"] == 75, f"{trial.name}: {told}\n{out}"
        assert compare.train_steps(own / "run") == list(range(1, told["step"] + 1)), trial.name
        assert (
            own / "run" / "checkpoints" / f"step-{told['step']:08}" / "manifest.json"
        ).exists(), trial.name
        starts = out.count("accumulate loop")
        assert starts == 1, f"{trial.name}: started {starts} times\n{out}"
        assert took < 10, f"{trial.name}: {took:.1f} s"
        codes[trial.fault].add(code)
        worst = max(worst, took)
        shutil.rmtree(own)
    ends = f"exit codes of the agents after SIGTERM {sorted(codes['TERM'])}"
    return (
        f"{len(trials)} times, saved each time, started again: 0, orphans: 0; {ends}; worst "
        f"{worst:.1f} s"
    )


ROWS = (
    Row(
        "38",
        "a stop under torchrun or `accelerate launch` with --max_restarts",
        "SIGTERM to the agent or to one rank, kill -9 of the agent; 2 ranks, with data workers and "
        "without",
        "saved, never started again; no orphan after 10 s",
        stops,
        slow=True,
    ),
)
