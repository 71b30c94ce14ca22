"""Steps that are tried on the real model before the first one: do they fit in memory, and how long
do they take?

Nothing here talks to another rank inside a step: there is no wrapper yet, and gradients stay in
memory as DDP's buckets would. So a rank that runs out of memory leaves no other waiting.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import psutil
import torch
from torch import Tensor

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.distributed.accelerator import free_memory
from train.distributed.ranks import Ranks, launched_local_world_size
from train.distributed.replicated import Replicated
from train.errors import is_out_of_memory
from train.memory.sizes import GIB, tensors_of
from train.memory.traced_step import Stepper
from train.memory.tracer import GRADIENTS, OPTIMIZER, SAMPLES, WEIGHTS, LiveStorages
from train.optim.skipped_steps import SkippedSteps
from train.step import Learner

OF_A_GPU, OF_THE_HOST = 0.92, 0.5
"""What may be used: of a GPU's memory, and of what the host has free, shared by its ranks."""

TIMES = 3
"""Each step is measured so often; the fastest counts."""


class Stays(Replicated):
    """Gradients are zeroed in place, as DDP's buckets are: they stay in memory."""

    frees_gradients = False


@dataclass
class Probe:
    """Of this rank. Call it inside `as_it_was`."""

    learner: Learner
    terms: list[str]
    like: Batch  # samples as large as any, on the CPU
    world_size: int
    limit: int  # bytes
    average: int = 0  # bytes of an average of the weights, which there is none of yet
    clock: Callable[[], float] = time.perf_counter
    stepper: Stepper = field(init=False)

    def __post_init__(self) -> None:
        learner = replace(
            self.learner,
            parallel=Stays(self.learner.module, Ranks())
            if self.world_size > 1
            else self.learner.parallel,
            skips=SkippedSteps(),
            scaler=torch.amp.GradScaler(
                self.learner.device.type, enabled=self.learner.scaler.is_enabled()
            ),
            stop_at_nonfinite=False,
        )
        if self.world_size > 1:
            for parameter in learner.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.stepper = Stepper.of(learner, self.terms)

    def fits(self, samples: int, accumulation_steps: int) -> bool:
        """Whether a step of such micro-batches does. Another error than out-of-memory is raised."""
        batches = [self.batch(samples)] * min(2, accumulation_steps)
        # the optimizer makes its state in the first one
        steps = 1 if self.learner.optimizer.state else 2

        def work() -> None:
            for _ in range(steps):
                self.stepper.step(batches)

        return self._within(work, batches[0])

    def takes_one_sample(self) -> bool:
        """Whether a micro-batch of one can be trained on: BatchNorm takes no statistics from it."""
        try:
            self._within(partial(self.stepper.step, [self.batch(1)]), self.batch(1))
            return True
        except Exception:  # whatever it is, a number of samples is looked for that the model takes
            return False

    def evaluates(self, samples: int) -> bool:
        """Whether an evaluation of so many samples at once fits."""
        module, task, device, dtype = (
            getattr(self.learner, name) for name in ("module", "task", "device", "dtype")
        )
        batch = self.batch(samples)
        modes = [(part, part.training) for part in module.modules()]

        def work() -> None:
            with torch.no_grad():
                task.eval_sums(module, to_device(batch, device, dtype))

        try:
            module.eval()
            return self._within(work, batch)
        finally:
            for part, mode in modes:
                part.training = mode

    def seconds(self, samples: int, accumulation_steps: int) -> float:
        """Of a whole step, from a shorter one; call it of what fits."""
        some = min(2, accumulation_steps)
        batches = [self.batch(samples)] * some
        found = []
        for _ in range(TIMES):
            marks: list[float] = []
            self._mark(marks)
            self.stepper.step(batches, partial(self._mark, marks))
            self._mark(marks)
            gradient, update = marks[1] - marks[0], marks[2] - marks[1]
            found.append(gradient / some * accumulation_steps + update)
        return min(found)

    def batch(self, samples: int) -> Batch:
        return {
            name: column[torch.arange(samples) % len(column)] for name, column in self.like.items()
        }

    def _mark(self, marks: list[float]) -> None:
        if self.learner.device.type != "cpu":
            torch.accelerator.synchronize()  # the host would measure how fast it hands over work
        marks.append(self.clock())

    def _within(self, work: Callable[[], None], batch: Batch) -> bool:
        try:
            return (
                self._on_gpu(work)
                if self.learner.device.type == "cuda"
                else self._on_cpu(work, batch)
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self._let_go()
        return False

    def _on_cpu(self, work: Callable[[], None], batch: Batch) -> bool:
        module, optimizer = self.learner.module, self.learner.optimizer
        with _uncompiled(), LiveStorages(limit=self.limit - self.average) as live:
            live.hold([*module.parameters(), *module.buffers()], WEIGHTS)
            live.hold(tensors_of(optimizer.state), OPTIMIZER)
            live.hold(batch.values(), SAMPLES)
            live.hold([*self.stepper.buckets, *self._gradients()], GRADIENTS)
            work()
        return True

    def _on_gpu(self, work: Callable[[], None]) -> bool:
        device = self.learner.device
        held = torch.empty(self.average, dtype=torch.uint8, device=device)
        torch.cuda.reset_peak_memory_stats(device)
        retries = torch.cuda.memory_stats(device)["num_alloc_retries"]
        work()
        del held
        was_tight = torch.cuda.memory_stats(device)["num_alloc_retries"] > retries
        return torch.cuda.max_memory_reserved(device) <= self.limit and not was_tight

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.learner.parameters if p.grad is not None]

    def _let_go(self) -> None:
        """Gradients of a step that failed in the middle, and what the allocator keeps in pieces of
        its sizes.
        """
        for parameter in self.learner.parameters:
            if self.stepper.learner.parallel.frees_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()
        free_memory(self.learner.device)


def limit_of(device: torch.device, limit_gib: float | None) -> int:
    """Bytes that a rank may use."""
    if limit_gib is not None:
        return int(limit_gib * GIB)
    if device.type == "cuda":
        return int(OF_A_GPU * torch.cuda.get_device_properties(device).total_memory)
    return int(OF_THE_HOST * psutil.virtual_memory().available / launched_local_world_size())


def _uncompiled() -> AbstractContextManager[object]:
    """A compiled model decides for itself what is made, and when."""
    return torch.compiler.set_stance("force_eager")
