"""Rows through launch.sh itself, with accelerate's launcher: each start costs an import of torch."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.campaigns.faults import compare
from tests.campaigns.faults.row import Row, folder

ROOT = Path(__file__).parents[3]
STEPS = (
    "duration.steps=4000",
    "log.every_steps=1",
    "checkpoint.every_steps=1000",
    "wandb.mode=disabled",
    "name=run",
)


def launch(
    here: Path, *words: str, after: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[str]:
    """launch.sh on two ranks, with a scontrol that only notes its arguments."""
    scontrol = folder(here, "bin") / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {here}/scontrol.txt\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "VIRTUAL_ENV": sys.prefix,
        "TMPDIR": str(here),
        "NPROC": "2",
    }
    environment |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", **variables}
    command = [str(ROOT / "launch.sh"), "configs/digits.yaml", *STEPS, f"output_dir={here}", *words]
    command += ["--", *after] if after else []
    # the process has its own copies
    with (here / "out.txt").open("w") as out, (here / "err.txt").open("w") as err:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=err, text=True
        )


def ours(here: Path) -> list[psutil.Process]:
    """All processes of one launch, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TMPDIR") == str(
                here
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _end(here: Path, started: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    try:
        code = started.wait(seconds)
    finally:
        for process in ours(here):
            process.kill()
    return code, (here / "err.txt").read_text()


def _trains(here: Path, started: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks, as soon as they take steps."""
    end = time.monotonic() + 120
    while not ((here / "run" / "metrics.jsonl").exists() and len(compare.rows(here / "run")) > 5):
        assert started.poll() is None, (here / "err.txt").read_text()
        assert time.monotonic() < end, "it does not start"
        time.sleep(0.1)
    return [
        process
        for process in ours(here)
        if "train.accumulate" in process.cmdline() and _is_rank(process)
    ]


def _is_rank(process: psutil.Process) -> bool:
    return "RANK" in process.environ()


def _launcher(here: Path, started: subprocess.Popen[str]) -> int:
    children = psutil.Process(started.pid).children()
    return next(child.pid for child in children if "accelerate.commands.launch" in child.cmdline())


def requeued(here: Path, full: bool) -> str:
    whom: dict[str, Callable[[Path, subprocess.Popen[str], list[psutil.Process]], list[int]]] = {
        "the batch shell": lambda own, started, found: [started.pid],
        "the ranks": lambda own, started, found: [process.pid for process in found],
        "the launcher": lambda own, started, found: [_launcher(own, started)],
    }
    told = []
    for name, choose in whom.items() if full else list(whom.items())[:2]:
        own = folder(here, name.replace(" ", "-"))
        started = launch(own, SLURM_JOB_ID="17")
        found = _trains(own, started)
        assert len(found) == 2, f"{len(found)} ranks"
        begun = time.monotonic()
        for pid in choose(own, started, found):
            os.kill(pid, signal.SIGUSR1)
        code, errors = _end_without_orphans(own, started)
        assert code == 75, f"{name}: {code}\n{errors}"
        assert (own / "scontrol.txt").read_text() == "requeue 17\n", f"{name}: {errors}"
        assert (
            json.loads((own / "run" / "ended.json").read_text())["reason"] == "stopped by SIGUSR1"
        )
        told.append(f"{name} {time.monotonic() - begun:.1f} s")
    return f"to {', '.join(told)}: saved, exit code 75, requeued once; orphans: 0"


def _end_without_orphans(here: Path, started: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        code = started.wait(60)
        left = ours(here)
        assert not left, f"orphans: {left}"
    finally:
        for process in ours(here):
            process.kill()
    return code, (here / "err.txt").read_text()


def crash_at_once(here: Path, full: bool) -> str:
    restarts = 4 if full else 3  # two pauses at least: the second has to be longer
    ranks = "2" if full else "1"
    variables = {"FAULTS_RECORD": str(here), "PYTHONPATH": str(ROOT), "NPROC": ranks}
    started = launch(
        here,
        "model.target=tests.campaigns.faults.ranks.FailsInTraining",
        "model.args={inputs: 64, outputs: 10}",
        "batch.exact=ignore",
        after=("--max_restarts", str(restarts)),
        **variables,
    )
    begun = time.monotonic()
    code, errors = _end(here, started, 400)
    starts = [told["time"] for told in compare.notes(here, "fired.jsonl") if told["rank"] == 0]
    pauses = [int(seconds) for seconds in re.findall(r"without progress; waiting (\d+) s", errors)]
    assert code == 1, f"{code}\n{errors[-3000:]}"
    assert len(starts) == restarts + 1, f"{len(starts)} starts"
    assert pauses == [2**number for number in range(restarts)][: len(pauses)], pauses
    assert len(pauses) >= restarts - 1, f"{pauses}\n{errors[-3000:]}"
    assert not ours(here)
    return (
        f"{restarts} restarts of {restarts}, pauses of {pauses} s, exit code 1 after "
        f"{time.monotonic() - begun:.0f} s"
    )


ROWS = (
    Row(
        "13",
        "SIGUSR1 to the batch shell, to ranks, to the launcher",
        "launch.sh with a scontrol that notes its arguments",
        "saved; requeue called once; no orphan",
        requeued,
        slow=True,
    ),
    Row(
        "33",
        "crash at once on every start",
        "launch.sh ... -- --max_restarts n; the first step raises",
        "stops after n restarts with a growing pause",
        crash_at_once,
        slow=True,
    ),
)
