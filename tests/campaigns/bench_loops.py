"""The loops that the benchmark sets side by side. Each yields after an optimizer step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.run import Run
from train.step import ComputeGradient, update

MAX_NORM = 1e6  # never reached


@dataclass(frozen=True)
class Job:
    """What a hand-written loop needs."""

    module: nn.Module  # on its device
    loss: Callable[[Tensor, Tensor], Tensor]
    columns: Mapping[str, Tensor]
    steps: Sequence[Sequence[Tensor]]  # of each, of each micro-batch: its samples
    device: torch.device
    ranks: int

    def optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = (self.columns[name].index_select(0, ids) for name in ("inputs", "labels"))
        return inputs.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def by_hand(job: Job, synchronises_always: bool = False) -> Iterator[torch.optim.Optimizer]:
    """(a), and (b): synchronised in every micro-step."""
    model = DistributedDataParallel(job.module) if job.ranks > 1 else job.module
    no_sync = model.no_sync if job.ranks > 1 and not synchronises_always else nullcontext
    optimizer = job.optimizer()
    for step in job.steps:
        for number, ids in enumerate(step, start=1):
            with no_sync() if number < len(step) else nullcontext():
                inputs, labels = job.batch(ids)
                loss = job.loss(model(inputs), labels) / len(step)
                loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield optimizer


def lean(job: Job, checks: bool = False) -> Iterator[torch.optim.Optimizer]:
    """(c): accelerate prepares the model; the window is the loop's own. `checks`: norm, clip, and
    is it finite?
    """
    accelerator = Accelerator()  # on the CPU where ACCELERATE_USE_CPU says so
    model: Any = accelerator.prepare(job.module)
    optimizer = job.optimizer()
    parameters = list(job.module.parameters())
    for step in job.steps:
        for number, ids in enumerate(step, start=1):
            with accelerator.no_sync(model) if number < len(step) else nullcontext():
                inputs, labels = job.batch(ids)
                loss = job.loss(model(inputs), labels) / len(step)
                accelerator.backward(loss)
        if not checks:
            optimizer.step()
        else:
            norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            if norm.isfinite():  # one read of the host
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield optimizer


def ours(run: Run, compute_gradient: ComputeGradient) -> Iterator[torch.optim.Optimizer]:
    """(d): train.loop.fit, one step at a time."""
    run.learner.optimizer.zero_grad(set_to_none=run.learner.parallel.frees_gradients)
    run.begin()
    gradient = run.watch(compute_gradient)
    for window in run.windows:
        losses = gradient(run.learner, window)
        norm = update(run.learner, run.plan.rate.at(window.k, window.seen))
        run.after_step(window, losses, norm)
        yield run.learner.optimizer
