"""Runs by scripts/slurm.sbatch in a copy of the clone, on nodes that are network namespaces where
that is permitted.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
        with Slurm(
            folder / "slurm", {"localhost" + "." * number: [] for number in range(nodes)}
        ) as slurm:
            yield slurm
        return
    with (
        hosts(nodes) as made,
        Slurm(folder / "slurm", {host.name: host.command([]) for host in made}) as slurm,
    ):
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
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
    }
    return {
        **os.environ,
        **own,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def requeued(
    folder: Path, nodes: int, words: Sequence[str], interrupt: Callable[[Slurm, Job], None]
) -> Path:
    """The folder of a run whose job was interrupted once while it trained, put back into the queue,
    and finished.
    """
    clone = copy_of_the_clone(folder)
    run = clone / "runs" / "run"
    with cluster(folder, nodes) as slurm:
        (job,) = slurm.sbatch(
            f"--nodes={nodes}", *OPTIONS, "name=run", *words, cwd=clone, env=environment()
        )
        trains(job, run)
        interrupt(slurm, job)
        assert slurm.wait(job, 200) == "COMPLETED", job.output.read_text()[-3000:]
    assert job.restarts == 1
    return run


def losses(run: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]


def weights(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


def trains(job: Job, run: Path, step: int = 1) -> None:
    """Returns as soon as so many steps have a row."""
    rows = run / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (rows.exists() and f'"train/global_step": {step},' in rows.read_text()):
        assert job.process
        assert job.process.poll() is None, job.output.read_text()[-3000:]
        assert time.monotonic() < end, job.output.read_text()[-3000:]
        time.sleep(0.02)
