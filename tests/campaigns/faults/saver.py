"""Saves and nothing but saves, in a process of its own: what is saved follows from the step."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import train.checkpoint.checkpoints
import train.checkpoint.commit
import train.checkpoint.files
from tests.campaigns.faults.ranks import failing, note, rank
from train.checkpoint import Checkpoints, SaveFailed
from train.checkpoint.commit import complete
from train.distributed.ranks import Ranks

POINTS: Sequence[tuple[Any, str]] = (
    (train.checkpoint.checkpoints, "commit"),
    (train.checkpoint.commit, "_begin"),
    (train.checkpoint.checkpoints, "write_state"),
    (train.checkpoint.files, "save_model"),
    (train.checkpoint.files, "save_file"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (Path, "mkdir"),
    (Path, "rename"),
    (os, "fsync"),
    (train.checkpoint.commit, "entry"),
    (train.checkpoint.commit, "_finish"),
    (train.checkpoint.commit, "rotate"),
    (shutil, "rmtree"),
)
"""Where a save can be interrupted: before and after each of these."""


class Holder:
    """A state beside the module."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "tensor": torch.full((300, 1000), float(self.step))}

    def load_state_dict(self, state: Any) -> None: ...


class Saves:
    """Checkpoints whose every number is their step; each point of a save is noted, then shown to
    `visit`.
    """

    def __init__(
        self, folder: Path, keep: int = 2, visit: Callable[[str], None] = lambda name: None
    ) -> None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size > 1:
            dist.init_process_group("gloo")
        self.module, self.holder, self.folder = nn.Linear(500, 500), Holder(), folder
        self._ranks = Ranks(rank(), world_size)
        self.checkpoints = Checkpoints(
            folder=folder,
            ranks=self._ranks,
            keep=keep,
            module=self.module,
            writes_state=self._ranks.is_main,
            resumed_from=None,
        )
        self.checkpoints.add({"holder": self.holder})
        self._visit = visit
        for holder, name in POINTS:
            self._wrap(holder, name)

    def _wrap(self, holder: Any, name: str) -> None:
        ours, plain = getattr(holder, name), name.strip("_")

        def call(*args: Any, **options: Any) -> Any:
            self._at(f"before {plain}")
            result = ours(*args, **options)
            self._at(f"after {plain}")
            return result

        setattr(holder, name, call)

    def _at(self, name: str) -> None:
        note(f"point-{rank()}.jsonl", name)
        self._visit(name)

    def save(self, step: int) -> None:
        self.holder.step = step
        nn.init.constant_(self.module.weight, step)
        self.checkpoints.save(step)
        if rank() == 0:
            swept = not list(self.folder.glob(".*"))
            note("saved.jsonl", {"step": step, "swept": swept, "time": time.monotonic()})

    def last(self) -> int:
        steps = self._ranks.from_main(
            lambda: [int(path.name.removeprefix("step-")) for path in complete(self.folder)]
        )
        return steps[-1] if steps else 0


def save_for_ever(folder: Path, number: int | None) -> int:
    saves = Saves(folder)
    step, saved = saves.last(), 0
    while saved != number:
        step, saved = step + 1, saved + 1
        saves.save(step)
    return 0


def save_steps(folder: Path, steps: Sequence[int], kill_at: int | None = None) -> int:
    """With `kill_at`: SIGKILL at the so many-th point, from 0."""
    seen = [0]

    def visit(name: str) -> None:
        if seen[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    saves = Saves(folder, visit=visit)
    for step in steps:
        saves.save(step)
    return 0


def save_counting(folder: Path, number: int, failing_step: int) -> int:
    """keep=1; at each point of each save the complete checkpoints are counted; one save fails."""
    now, quiet = [0], [False]

    def visit(name: str) -> None:
        if not quiet[0]:
            quiet[0] = True  # counting is no point itself
            note("counts.jsonl", [now[0], len(complete(folder))])
            quiet[0] = False

    saves = Saves(folder, 1, visit)
    failing("fsync", os, lambda file: now[0] == failing_step, errno.EIO)
    for step in range(1, number + 1):
        now[0] = step
        try:
            saves.save(step)
        except SaveFailed:
            note("failed.jsonl", step)
    return 0
