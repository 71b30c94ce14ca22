"""What jobs on SLURM print, for docs/cluster.md: python -m tests.campaigns.transcript [--write]

The commands are those of a person, SLURM is the stand-in of tests/slurm, and its nodes are network
namespaces (root) of this machine. Each scene is checked before it is shown.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from tests.campaigns.launched import ROOT, write_between
from tests.hosts import why_not
from tests.slurm import Job, Slurm
from tests.slurm.runs import cluster, copy_of_the_clone, environment, trains

PAGE = ROOT / "docs" / "cluster.md"
SCRIPT = "--cpus-per-task=1 scripts/slurm.sbatch configs/digits.yaml"
SHORT = "duration.steps=300 log.every_steps=50 wandb.mode=disabled"
SHOWN_STEPS = 1
"""Of the lines of steps that follow each other, so many from the beginning and from the end."""
OF_TORCH = re.compile(r"\[?W\d{4} |Traceback|  |torch\.distributed\..*SignalException")
"""Its warnings, and the stack of its agent when a signal reaches the whole step."""


class Scene:
    """A cluster of two nodes, and what was typed and printed there."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.clone = copy_of_the_clone(folder)
        self.slurm = slurm
        self.lines: list[str] = []

    def submit(self, options: str) -> list[Job]:
        jobs = self.slurm.sbatch(*options.split(), cwd=self.clone, env=environment())
        number = jobs[0].array.get("SLURM_ARRAY_JOB_ID", str(jobs[0].id))
        self.lines += [f"$ sbatch {options}", f"Submitted batch job {number}"]
        return jobs

    def finished(self, *jobs: Job) -> None:
        states = {self.slurm.wait(job, 400) for job in jobs}
        assert states == {"COMPLETED"}, jobs[0].output.read_text()[-3000:]

    def show(self, job: Job) -> None:
        self.lines += [f"$ cat {job.output.name}", *shortened(job.output.read_text())]

    def losses(self, name: str) -> list[float]:
        rows = (self.clone / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [row["train/loss"] for row in map(json.loads, rows) if "train/loss" in row]

    def text(self) -> str:
        text = (
            "\n".join(self.lines)
            .replace(str(self.clone), "<clone>")
            .replace(sys.prefix, "<environment>")
        )
        for path in ("/tmp", str(Path.home()), str(ROOT)):
            assert path not in text, text
        return text


def shortened(log: str) -> list[str]:
    """Without most of the lines of steps, and without what torch says of itself."""
    kept: list[str] = []
    steps: list[str] = []
    for line in [*log.splitlines(), ""]:
        if OF_TORCH.match(line):
            continue
        if line.startswith("step "):
            steps.append(line)
            continue
        cut = len(steps) > 2 * SHOWN_STEPS
        kept += [*steps[:SHOWN_STEPS], "...", *steps[-SHOWN_STEPS:]] if cut else steps
        steps = []
        kept.append(line)
    return kept[:-1]


def requeued(scene: Scene) -> None:
    """Two nodes; the time limit comes; the job resumes where it was."""
    (job,) = scene.submit(f"--nodes=2 {SCRIPT} {SHORT} name=limited")
    trains(job, scene.clone / "runs" / "limited", step=50)
    scene.slurm.near_time_limit(job)
    scene.finished(job)
    assert job.restarts == 1
    scene.lines.append(
        "(while it trains, SLURM sends the SIGUSR1 of --signal, and puts the job back into the "
        "queue)"
    )
    scene.show(job)


def at_once(scene: Scene) -> None:
    """Two jobs on the same two nodes at the same time; one of them is preempted, and their losses
    are the same.
    """
    one, other = (
        scene.submit(f"--nodes=2 {SCRIPT} {SHORT} name={name}")[0] for name in ("one", "other")
    )
    trains(one, scene.clone / "runs" / "one", step=50)
    scene.slurm.preempt(one)
    scene.finished(one, other)
    assert scene.losses("one") == scene.losses("other")
    scene.lines.append(
        f"(job {one.id} is preempted while it trains: SIGTERM to all its processes, then it starts "
        "again)"
    )
    ports = [f"$ grep ports {job.output.name}" for job in (one, other)]
    for typed, job in zip(ports, (one, other), strict=True):
        found = [line for line in job.output.read_text().splitlines() if "ports" in line]
        scene.lines += [typed, *found]


def seeds(scene: Scene) -> None:
    """Three seeds from one array, of which one comes to its time limit."""
    tasks = scene.submit(
        f"--array=0-2 {SCRIPT} duration.steps=1000 log.every_steps=50 wandb.mode=disabled seed=%a"
    )
    names = [f"digits-steps1000-seed{number}" for number in range(3)]
    trains(tasks[2], scene.clone / "runs" / names[2], step=50)
    scene.slurm.near_time_limit(tasks[2])
    scene.finished(*tasks)
    assert [task.restarts for task in tasks] == [0, 0, 1]
    ended = [
        json.loads((scene.clone / "runs" / name / "ended.json").read_text())["reason"]
        for name in names
    ]
    assert ended == ["finished"] * 3
    scene.lines += [
        "(the last task comes to its time limit)",
        "$ tail -qn 1 slurm-*_*.out; ls runs",
    ]
    found = [task.output.read_text().splitlines()[-1] for task in tasks]
    scene.lines += [*found, *sorted(path.name for path in (scene.clone / "runs").iterdir())]


SCENES: tuple[Callable[[Scene], None], ...] = (requeued, at_once, seeds)


def main(words: list[str]) -> int:
    if why_not():
        print(f"transcript: {why_not()}", file=sys.stderr)
        return 1
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    parts = [
        f"Commit {commit.stdout.strip()}, {date.today()}, by `python -m tests.campaigns.transcript "
        "--write`."
    ]
    with (
        tempfile.TemporaryDirectory(prefix="transcript-") as folder,
        cluster(Path(folder), 2) as slurm,
    ):
        for play in SCENES:
            own = Path(folder) / play.__name__
            own.mkdir()
            scene = Scene(own, slurm)
            play(scene)
            parts += [str(play.__doc__), f"```text\n{scene.text()}\n```"]
            print(parts[-1], flush=True)
    text = "\n\n".join(parts)
    if "--write" in words:
        write_between(PAGE, "transcript", re.sub(r"[ \t]+\n", "\n", text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
