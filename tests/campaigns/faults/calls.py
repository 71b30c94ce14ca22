"""A row about whole runs, killed before each call by which they change the file system."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.campaigns.faults import compare, jobs, ranks
from tests.campaigns.faults.row import Row, check_fired, folder
from tests.helpers import argv
from train.checkpoint.commit import complete
from train.checkpoint.manifest import step_of, verify

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
"""Of Python's audit events, which it raises before each such call, whoever makes it."""
NEVER = 10**9
PLACES = {
    "checkpoints/": "a save or rotation",
    "best": "best",
    "final": "final",
    "": "the claim and files of a run",
}


def train_until(argv: Sequence[str], output: Path, kill_at: int | None) -> int:
    """A run whose calls are noted; SIGKILL before that of a number, from 0."""
    seen = [0]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(args[0], str | os.PathLike | bytes):
            return
        path = os.fsdecode(args[0])
        changes = event != "open" or (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if not path.startswith(str(output)) or path == str(output) or not changes:
            return
        number, seen[0] = seen[0], seen[0] + 1
        if number == kill_at:
            ranks.kill()
        if kill_at is None:
            ranks.note("calls.jsonl", {"event": event, "path": path.removeprefix(f"{output}/")})

    sys.addaudithook(watch)
    return ranks.train_rank(argv)


def words(here: Path, output: Path) -> list[str]:
    here.mkdir(parents=True, exist_ok=True)
    given = (
        "data.eval_fraction=0.2",
        "evaluate={every_steps: 1, best: eval/loss}",
        "duration={steps: 3}",
    )
    return [
        *argv(here, *given, "checkpoint={resume: auto, every_steps: 1, keep: 1}"),
        f"output_dir={output}",
    ]


def start(here: Path, kill_at: int | None = None, restarts: int = 0) -> tuple[int, jobs.Job]:
    """In a job that the scheduler starts again: what was killed before its first checkpoint begins
    anew.
    """
    output = here / "runs"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    job = jobs.start_ranks(here, 1, train_until, words(here, output), output, kill_at, **slurm)
    return job.wait()[0], job


def killed_at_every_call(here: Path, full: bool) -> str:
    apart = folder(here, "reference")
    code, job = start(apart)
    assert code == 0, job.told()
    calls = compare.notes(apart, "calls.jsonl")
    chosen = range(len(calls)) if full else range(0, len(calls), len(calls) // 5)
    fell: Counter[str] = Counter()
    for number in chosen:
        own = folder(here, f"call-{number}")
        code, job = start(own, number)
        assert code == -signal.SIGKILL, f"not killed at call {number}: {job.told()}"
        check_fired(own, "kill")
        left = complete(own / "runs" / "run" / "checkpoints")
        for path in left:
            verify(path)
        saved = step_of(left[-1]) if left else 0
        rows = (
            compare.train_steps(own / "runs" / "run")
            if (own / "runs/run/metrics.jsonl").exists()
            else []
        )
        assert saved >= len(rows) - 1, (
            f"call {number}: {len(rows)} steps in metrics.jsonl, {saved} saved"
        )
        code, job = start(own, NEVER, restarts=1)
        assert code == 0, f"call {number}, {calls[number]}: {job.told()}"
        went_on = (
            f"step-{saved:08}: step {saved} of" in job.told() or "finished at step 3" in job.told()
        )
        assert went_on or not saved, f"call {number}: {job.told()}"
        differing = compare.differing(
            compare.state(apart / "runs/run"), compare.state(own / "runs/run")
        )
        assert not differing, f"call {number}, {calls[number]}: {differing[:5]}"
        of_best = [
            compare.digest(each / "runs/run/best/model.safetensors") for each in (apart, own)
        ]
        assert of_best[0] == of_best[1], f"call {number}, {calls[number]}: another best"
        left_over = [path.name for path in own.rglob("runs/.*")] + [
            p.name for p in own.rglob("run/checkpoints/.*")
        ]
        assert not left_over, f"call {number}, {calls[number]}: {left_over}"
        fell[_place(calls[number]["path"])] += 1
    told = ", ".join(f"{name} {count}" for name, count in fell.items())
    return f"{len(chosen)} of {len(calls)} calls; lost 0, torn 0; the same command went on: {told}"


def _place(path: str) -> str:
    inside = path.partition("/")[2].lstrip(".")
    return next(place for start, place in PLACES.items() if inside.startswith(start))


ROWS = (
    Row(
        "40",
        "kill at each call that changes a file",
        "SIGKILL before each open for writing, mkdir, rename and removal of a run of 3 steps: "
        "claim, save, rotation, best, final",
        "the same command goes on from the newest checkpoint and ends bit-identical, nothing is "
        "left over",
        killed_at_every_call,
    ),
)
