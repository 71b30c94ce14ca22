"""A row of the campaign, and what several rows use."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.faults import compare, jobs, ranks
from tests.helpers import argv

Figure = Callable[[Path, bool], str]
"""(an empty folder, whether there is time for all of it) -> the figure to report; AssertionError
where it failed.
"""


@dataclass(frozen=True)
class Row:
    number: str
    fault: str
    injection: str
    expected: str
    run: Figure
    slow: bool = False  # its quick form too: it starts launch.sh, or waits for a deadline


def command(here: Path, *overrides: str) -> list[str]:
    """A run of 20 steps on 37 samples (5 steps per epoch), saved every 5 steps, that resumes."""
    base = [
        "checkpoint.resume=auto",
        "duration.steps=20",
        "checkpoint.every_steps=5",
        "optimizer.target=adamw",
    ]
    return argv(here, *base, "optimizer.lr=0.01", "precision=fp32", *overrides)


def folder(here: Path, name: str) -> Path:
    made = here / name
    made.mkdir(parents=True)
    return made


def train(
    here: Path,
    world_size: int,
    words: Sequence[str],
    *patches: ranks.Patch,
    loop: str = "accumulate",
    **env: str,
) -> tuple[list[int], jobs.Job]:
    """One start of a run, to its end: (exit codes, job)."""
    job = jobs.start_ranks(here, world_size, ranks.train_rank, words, loop, patches, **env)
    return job.wait(), job


def reference(here: Path, world_size: int, *overrides: str, loop: str = "accumulate") -> Path:
    """The folder of a run that nothing happens to."""
    apart = folder(here, "reference")
    codes, job = train(apart, world_size, command(apart, *overrides), loop=loop)
    assert codes == [0] * world_size, job.told()
    return apart


def check_same(here: Path, preserve_state: Path, world_size: int) -> None:
    """Two runs ended bit-identical, on the same samples, and as many ranks met as were asked for."""
    apart = compare.differing(compare.state(preserve_state / "run"), compare.state(here / "run"))
    assert not apart, "\n".join(apart[:10])
    assert compare.samples(here, world_size) == compare.samples(preserve_state, world_size)
    steps = compare.train_steps(here / "run")
    assert steps == list(range(1, len(steps) + 1)), f"duplicates or holes: {steps}"


def check_fired(here: Path, what: str, times: int = 1) -> None:
    seen = [told for told in compare.notes(here, "fired.jsonl") if told["what"] == what]
    assert len(seen) >= times, f"the fault {what!r} fired {len(seen)} times, not {times}"


def seconds_since_fault(here: Path) -> float:
    return time.time() - float(compare.notes(here, "fired.jsonl")[0]["time"])


at_step: Any = partial(partial, ranks.at_step)
