"""What runs in a rank of a campaign: the training itself, a record of what it takes, and the faults."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

import train.accumulate
import train.standard
from train import entry
from train.step import Learner
from train.window import MicroBatch, Window

Patch = Callable[[], None]
"""Put into the process of a rank before it starts to train."""
Action = Callable[[], None]

_before: list[Callable[[Learner, Window], None]] = []
"""Called before the gradient of each window."""


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def note(name: str, value: Any) -> None:
    """A line that outlives a SIGKILL."""
    file = os.open(Path(os.environ["FAULTS_RECORD"]) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, (json.dumps(value) + "\n").encode())
    os.close(file)


def train_rank(argv: Sequence[str], loop: str = "accumulate", patches: Sequence[Patch] = ()) -> int:
    """`python -m train.LOOP ARGV`, with faults; each window is noted before it is computed."""
    ours = {"accumulate": train.accumulate, "standard": train.standard}[loop].compute_gradient
    for patch in patches:
        patch()

    def compute_gradient(learner: Learner, window: Window) -> Tensor:
        ids = [i for m in window.micro_batches if m.samples for i in m.batch["sample_id"].tolist()]
        told = {"attempt": attempt(), "pid": os.getpid(), "k": window.k, "world": learner.world_size, "ids": ids}
        note(f"windows-{rank()}.jsonl", told)
        for call in _before:
            call(learner, window)
        return ours(learner, window)

    return entry.main(argv, loop, compute_gradient)


# Actions


def fired(what: str) -> None:
    note("fired.jsonl", {"what": what, "rank": rank(), "pid": os.getpid(), "time": time.time()})


def kill() -> None:
    fired("kill")
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    fired("terminate")
    os.kill(os.getpid(), signal.SIGTERM)


def leave() -> None:
    fired("leave")
    os._exit(3)


def fail() -> None:
    fired("fail")
    raise RuntimeError("a fault of rank's own")


def out_of_memory() -> None:
    fired("out of memory")
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


# Patches


def at_step(k: int, action: Action, only: int | None = None) -> None:
    """`action` before the gradient of step k, in the first attempt alone."""

    def look(learner: Learner, window: Window) -> None:
        if window.k == k and only in (None, rank()) and attempt() == 0:
            action()

    _before.append(look)


def each_step(action: Action) -> None:
    _before.append(lambda learner, window: action())


def pause_steps(seconds: float) -> None:
    _before.append(lambda learner, window: time.sleep(seconds))


def in_micro_step(k: int, i: int, action: Action, only: int | None = None) -> None:
    """`action` inside micro-step i (from 1) of step k: after its forward and backward."""
    ours, seen = train.accumulate.forward_backward, [0, 0]

    def forward_backward(learner: Learner, micro_batch: MicroBatch, window: Window) -> Tensor:
        done = ours(learner, micro_batch, window)
        seen[:] = [window.k, seen[1] + 1 if seen[0] == window.k else 1]
        if seen == [k, i] and only in (None, rank()):
            action()
        return done

    train.accumulate.forward_backward = forward_backward


def poison(k: int, only: int) -> None:
    """A gradient of NaN in step k, one micro-batch of one rank."""
    ours = train.accumulate.forward_backward

    def forward_backward(learner: Learner, micro_batch: MicroBatch, window: Window) -> Tensor:
        if window.k == k and rank() == only and micro_batch is window.micro_batches[0]:
            fired("poison")
            column = micro_batch.batch["inputs"].clone()
            column[0, 0] = float("nan")
            micro_batch = MicroBatch({**micro_batch.batch, "inputs": column}, micro_batch.samples)
        return ours(learner, micro_batch, window)

    train.accumulate.forward_backward = forward_backward


def failing(name: str, holder: Any, when: Callable[..., bool], number: int, only: int | None = None) -> None:
    """holder.name raises OSError(number) where `when(*arguments)`."""
    ours = getattr(holder, name)

    def call(*args: Any, **options: Any) -> Any:
        if only in (None, rank()) and when(*args):
            fired(name)
            raise OSError(number, os.strerror(number), str(args[0]))
        return ours(*args, **options)

    setattr(holder, name, call)


def failing_fsync(step: int, only: int | None = None, file: str = "") -> None:
    """fsync says EIO for whatever of the checkpoint of `step` holds `file` in its name."""

    def when(number: int) -> bool:
        path = os.readlink(f"/proc/self/fd/{number}")
        return f"step-{step:08}" in path and file in path

    failing("fsync", os, when, errno.EIO, only)


def failing_rename(step: int) -> None:
    failing("rename", Path, lambda path, to: path.name == f".step-{step:08}.unfinished", errno.EIO)


# Models and data


class Dropped(nn.Module):
    """With dropout: each step draws from the generator of its rank."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class Broken(nn.Module):
    def __init__(self, text: str = "broken") -> None:
        super().__init__()
        raise RuntimeError(text)


def large(size: int = 37, width: int = 6) -> Dataset:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(size, width)).astype(np.float32)
    return Dataset.from_dict({"inputs": inputs, "labels": random.integers(0, 3, size)})
