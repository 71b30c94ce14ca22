"""Runs by scripts/slurm.sbatch in a copy of the clone, on nodes that are network namespaces where that is permitted."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts import hosts, why_not
from tests.slurm.controller import Job, Slurm

ROOT = Path(__file__).parents[2]
OPTIONS = ("--cpus-per-task=1", "scripts/slurm.sbatch", "configs/digits.yaml")


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Slurm]:
    """Where there are no namespaces, all nodes are this machine."""
    if nodes == 1 or why_not():
        with Slurm(folder / "slurm", {"localhost" + "." * number: [] for number in range(nodes)}) as slurm:
            yield slurm
        return
    with hosts(nodes) as made, Slurm(folder / "slurm", {host.name: host.command([]) for host in made}) as slurm:
        yield slurm


def copy_of_the_clone(folder: Path) -> Path:
    clone = folder / "clone"
    clone.mkdir()
    shutil.copy2(ROOT / "launch.sh", clone)
    for name in ("scripts", "configs", "train"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    return clone


def environment() -> dict[str, str]:
    """Of the person who submits."""
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
    return {**os.environ, **own, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def trains(job: Job, run: Path, step: int = 1) -> None:
    """Returns as soon as so many steps have a row."""
    rows = run / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (rows.exists() and f'"train/global_step": {step},' in rows.read_text()):
        assert job.process
        assert job.process.poll() is None, job.output.read_text()[-3000:]
        assert time.monotonic() < end, job.output.read_text()[-3000:]
        time.sleep(0.02)
