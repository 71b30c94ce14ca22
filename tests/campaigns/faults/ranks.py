"""What runs in a rank of a campaign: the training itself, a record of what it takes, and the
faults.
"""

import errno
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from datasets.builder import DatasetBuilder
from torch import Tensor, nn

import train.accumulate
import train.checkpoint.checkpoints
import train.run
import train.setup
import train.standard
from tests.helpers import rank_group, tiny
from train import main as entry
from train.batch.window import MicroBatch, Window
from train.checkpoint import Checkpoints
from train.config import Config, load
from train.data import load_splits
from train.step import Learner

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
    file = os.open(
        Path(os.environ["FAULTS_RECORD"]) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
    )
    os.write(file, (json.dumps(value) + "\n").encode())
    os.close(file)


def train_rank(argv: Sequence[str], loop: str = "accumulate", patches: Sequence[Patch] = ()) -> int:
    """`python -m train.LOOP ARGV`, with faults; each window is noted before it is computed."""
    ours = {"accumulate": train.accumulate, "standard": train.standard}[loop].compute_gradient
    for patch in patches:
        patch()

    def compute_gradient(learner: Learner, window: Window) -> Tensor:
        ids = [i for m in window.micro_batches if m.samples for i in m.batch["sample_id"].tolist()]
        told = {
            "attempt": attempt(),
            "pid": os.getpid(),
            "k": window.k,
            "world": learner.world_size,
            "ids": ids,
        }
        note(f"windows-{rank()}.jsonl", told)
        for call in _before:
            call(learner, window)
        return ours(learner, window)

    return entry.main(argv, loop, compute_gradient)


def load_rank(argv: Sequence[str], patches: Sequence[Patch] = ()) -> int:
    """Loads the data as a training does, and notes when, and who prepared the cache."""
    ours = DatasetBuilder._download_and_prepare

    def download_and_prepare(*args: Any, **options: Any) -> None:
        note("prepared.jsonl", {"rank": rank()})
        ours(*args, **options)

    DatasetBuilder._download_and_prepare = download_and_prepare
    for patch in patches:
        patch()
    config, group = load(argv).config, rank_group()

    def work() -> None:
        begun = time.time()
        length = len(load_splits(config, ("inputs", "labels")).train)
        note(
            "loaded.jsonl", {"rank": rank(), "length": length, "begun": begun, "ended": time.time()}
        )

    group.first_of_node(work)
    return 0


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


def note_start() -> None:
    note("started.jsonl", {"pid": os.getpid()})


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


def short_of_memory(k: int, where: str, only: int | None = None) -> None:
    """Step k runs out of memory: in the forward or backward of its first or last micro-step, or in
    its update.
    """
    ours, seen = train.accumulate.forward_backward, [0]
    _before.append(lambda learner, window: seen.__setitem__(0, 0))

    def forward_backward(learner: Learner, micro_batch: MicroBatch, window: Window) -> Tensor:
        place = {1: "first", len(window.micro_batches): "last"}.get(seen[0] + 1, "")
        seen[0] += 1
        is_here = window.k == k and only in (None, rank())
        if is_here and where == f"{place} forward":
            out_of_memory()
        if is_here and where == f"{place} backward":
            torch.autograd.backward = lambda loss: out_of_memory()
        if is_here and where == "update":
            learner.optimizer.step = out_of_memory
        return ours(learner, micro_batch, window)

    train.accumulate.forward_backward = forward_backward


def while_building(action: Action, only: int) -> None:
    """`action` where the model is made."""
    ours = train.setup.initial_model

    def initial_model(config: Config) -> nn.Module:
        if rank() == only and attempt() == 0:
            action()
        return ours(config)

    train.setup.initial_model = initial_model


def in_save(action: Action, only: int) -> None:
    """`action` where this rank writes its part of the first checkpoint."""
    ours = Checkpoints._write

    def write(self: Checkpoints, *args: Any) -> list[str]:
        if rank() == only and attempt() == 0:
            action()
        return ours(self, *args)

    Checkpoints._write = write  # type: ignore[method-assign]


def poison(k: int, only: int) -> None:
    """A gradient of NaN in step k, one micro-batch of one rank."""
    ours = train.accumulate.forward_backward

    def forward_backward(learner: Learner, micro_batch: MicroBatch, window: Window) -> Tensor:
        if window.k == k and rank() == only and micro_batch is next(iter(window.micro_batches)):
            fired("poison")
            column = micro_batch.batch["inputs"].clone()
            column[0, 0] = float("nan")
            micro_batch = MicroBatch({**micro_batch.batch, "inputs": column}, micro_batch.samples)
        return ours(learner, micro_batch, window)

    train.accumulate.forward_backward = forward_backward


def failing(
    name: str, holder: Any, when: Callable[..., bool], number: int, only: int | None = None
) -> None:
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
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        return f"step-{step:08}" in path and file in path

    failing("fsync", os, when, errno.EIO, only)


def failing_write(step: int, only: int) -> None:
    """A rank cannot write its part of the checkpoint of `step`."""
    failing(
        "_write",
        Checkpoints,
        lambda *arguments: f"step-{step:08}" in str(arguments[-1]),
        errno.EIO,
        only,
    )


def failing_rename(step: int) -> None:
    failing("rename", Path, lambda path, to: path.name == f".step-{step:08}.unfinished", errno.EIO)


def failing_journal(step: int) -> None:
    """fsync of metrics.jsonl says EIO once `step` has begun."""
    now = [0]
    _before.append(lambda learner, window: now.__setitem__(0, window.k))

    def when(number: int) -> bool:
        return now[0] >= step and Path(f"/proc/self/fd/{number}").readlink().name == "metrics.jsonl"

    failing("fsync", os, when, errno.EIO)


def slow_write(step: int, seconds: float) -> None:
    """The save of `step` takes rank 0 so long."""
    ours = train.checkpoint.checkpoints.write_state

    def write_state(folder: Path, *args: Any) -> list[str]:
        if f"step-{step:08}" in folder.name:
            fired("slow")
            time.sleep(seconds)
        return ours(folder, *args)

    train.checkpoint.checkpoints.write_state = write_state


def short_grace(seconds: float) -> None:
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(seconds)


def kill_builder() -> None:
    """SIGKILL where rank 0 has written the first samples into a cache."""
    ours = ArrowWriter.write_table

    def write_table(*args: Any, **options: Any) -> None:
        ours(*args, **options)
        if rank() == 0:
            kill()

    ArrowWriter.write_table = write_table


def note_inputs() -> None:
    """The first number of the inputs of each sample."""

    def look(learner: Learner, window: Window) -> None:
        columns = [m.batch["inputs"][:, 0] for m in window.micro_batches if m.samples]
        note(f"inputs-{rank()}.jsonl", [int(n) for column in columns for n in column.tolist()])

    _before.append(look)


def note_weights() -> None:
    """The digest of all weights before each window."""

    def look(learner: Learner, window: Window) -> None:
        flat = torch.cat([p.detach().flatten() for p in learner.parameters])
        note(
            f"weights-{rank()}.jsonl",
            [window.k, hashlib.sha256(flat.numpy().tobytes()).hexdigest()],
        )

    _before.append(look)


def as_command(words: Sequence[str], cwd: Path) -> None:
    """What a user typed, and where."""
    sys.argv = ["accumulate.py", *words]
    os.chdir(cwd)


def no_device() -> None:
    """Notes whether anybody went as far as to meet the other ranks."""
    ours = train.run.connect

    def connect(config: Any) -> Any:
        fired("connect")
        return ours(config)

    train.run.connect = connect


def say_secret(name: str) -> None:
    raise RuntimeError(f"401 for {os.environ[name]} at https://me:{os.environ[name]}@example.org")


# Models and data


class Dropped(nn.Module):
    """With dropout: each step draws from the generator of its rank."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class FailsInTraining(nn.Module):
    """Works while it is tried out, on 8 samples at most, and fails in every first step."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > 8:
            fail()
        return self.layer(inputs.flatten(1))


def secretive(password: str, api_key: str, token: str, url: str, size: int = 37) -> Dataset:
    """Data behind a login."""
    assert password
    assert api_key
    assert token
    assert url
    return tiny(size)
