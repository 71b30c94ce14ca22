"""Trial steps on the real model before the first one: do they fit in memory, and how fast are they?

Nothing here talks to another rank inside a step: there is no wrapper yet, and gradients stay in
memory as DDP's buckets would. So a rank that runs out of memory leaves no other waiting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import psutil
import torch

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.distributed.accelerator import free_memory
from train.distributed.ranks import Ranks, launched_local_world_size
from train.distributed.replicated import Replicated
from train.errors import is_out_of_memory
from train.memory.sizes import GIB, parameters_and_buffers, tensors_of
from train.memory.traced_step import Stepper
from train.memory.tracer import GRADIENTS, OPTIMIZER, SAMPLES, WEIGHTS, LiveStorages
from train.optim.skipped_steps import SkippedSteps
from train.step import Learner

GPU_SHARE = 0.92
"""Of a GPU's memory, what may be used."""

HOST_SHARE = 0.5
"""Of the memory that the host has free, what its ranks may use together."""

REPEATS = 3
"""Each step is timed this often; the fastest counts."""


class KeepsGradients(Replicated):
    """Gradients are zeroed in place, as DDP's buckets are: they stay in memory."""

    frees_gradients = False


@dataclass
class Probe:
    """Of this rank. Call it inside `restored_afterwards`."""

    learner: Learner
    terms: list[str]
    like: Batch  # samples as large as any, on the CPU
    world_size: int
    limit: int  # bytes
    average: int = 0  # bytes of an average of the weights, which does not exist yet
    clock: Callable[[], float] = time.perf_counter
    stepper: Stepper = field(init=False)

    def __post_init__(self) -> None:
        parallel = self.learner.parallel
        if self.world_size > 1:
            parallel = KeepsGradients(self.learner.module, Ranks())
            for parameter in self.learner.parameters:
                # There from the start, as DDP's buckets are: the first trial step would else find
                # room that a run has not.
                parameter.grad = torch.zeros_like(parameter)
        # Skipped steps and the loss scale of the run must not see the trial steps.
        scaler = torch.amp.GradScaler(
            self.learner.device.type, enabled=self.learner.scaler.is_enabled()
        )
        learner = replace(
            self.learner,
            parallel=parallel,
            skips=SkippedSteps(),
            scaler=scaler,
            stop_at_nonfinite=False,
        )
        self.stepper = Stepper.of(learner, self.terms)

    def fits(self, samples: int, accumulation_steps: int) -> bool:
        """Whether a step of such micro-batches fits. Raises errors other than out-of-memory."""
        # Two micro-batches stand for any larger number: gradients persist between them.
        batches = [self.batch(samples)] * min(2, accumulation_steps)
        # The first step makes the optimizer's state; the second has it from the beginning.
        steps = 1 if self.learner.optimizer.state else 2

        def work() -> None:
            for _ in range(steps):
                self.stepper.step(batches)

        return self._fits_in_memory(work, batches[0])

    def takes_one_sample(self) -> bool:
        """Whether a micro-batch of one can be trained on; BatchNorm, for one, needs two samples."""
        try:
            # Through _fits_in_memory, which frees what a failed step leaves behind.
            self._fits_in_memory(partial(self.stepper.step, [self.batch(1)]), self.batch(1))
            return True
        except Exception:  # any error: the search then looks for a number of samples that works
            return False

    def evaluates(self, samples: int) -> bool:
        """Whether an evaluation of that many samples at once fits."""
        learner = self.learner
        batch = self.batch(samples)
        modes = [(part, part.training) for part in learner.module.modules()]

        def work() -> None:
            on_device = to_device(batch, learner.device, learner.dtype)
            with torch.no_grad():
                learner.task.eval_sums(learner.module, on_device)

        try:
            learner.module.eval()
            return self._fits_in_memory(work, batch)
        finally:
            for part, mode in modes:
                part.training = mode

    def seconds(self, samples: int, accumulation_steps: int) -> float:
        """Of a full step, extrapolated from one of at most two micro-batches, which must fit."""
        micro_steps = min(2, accumulation_steps)
        batches = [self.batch(samples)] * micro_steps
        seconds = []
        for _ in range(REPEATS):
            # The update is timed apart: there is one in a step, however many micro-steps it has.
            begin, gradient_ready, end = self._timed_step(batches)
            per_micro_step = (gradient_ready - begin) / micro_steps
            seconds.append(per_micro_step * accumulation_steps + (end - gradient_ready))
        # The fastest: whatever else the machine does only adds time.
        return min(seconds)

    def _timed_step(self, batches: list[Batch]) -> list[float]:
        """The times of its beginning, of the complete gradient, and of its end."""
        times = [self._synchronised_time()]
        self.stepper.step(batches, lambda: times.append(self._synchronised_time()))
        times.append(self._synchronised_time())
        return times

    def batch(self, samples: int) -> Batch:
        """The samples of `like`, repeated as often as needed."""
        batch = {}
        for name, column in self.like.items():
            batch[name] = column[torch.arange(samples) % len(column)]
        return batch

    def _synchronised_time(self) -> float:
        # Else the host would measure how fast it launches kernels.
        if self.learner.device.type != "cpu":
            torch.accelerator.synchronize()
        return self.clock()

    def _fits_in_memory(self, work: Callable[[], None], batch: Batch) -> bool:
        try:
            if self.learner.device.type == "cuda":
                return self._fits_on_gpu(work)
            self._run_on_cpu(work, batch)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self._free()
        return False

    def _run_on_cpu(self, work: Callable[[], None], batch: Batch) -> None:
        """Raises torch.OutOfMemoryError beyond the limit."""
        gradients = [p.grad for p in self.learner.parameters if p.grad is not None]
        limit = self.limit - self.average
        # A compiled model decides for itself what is allocated, and when: not seen by the tracer.
        with torch.compiler.set_stance("force_eager"), LiveStorages(limit=limit) as live:
            live.count_as(parameters_and_buffers(self.learner.module), WEIGHTS)
            live.count_as(tensors_of(self.learner.optimizer.state), OPTIMIZER)
            live.count_as(batch.values(), SAMPLES)
            live.count_as([*self.stepper.buckets, *gradients], GRADIENTS)
            work()

    def _fits_on_gpu(self, work: Callable[[], None]) -> bool:
        device = self.learner.device
        # Stands in for an average that the run makes later.
        average = torch.empty(self.average, dtype=torch.uint8, device=device)
        torch.cuda.reset_peak_memory_stats(device)
        retries = _allocator_retries(device)
        work()
        del average
        # A retry: it fitted only after cached blocks were freed, which costs time in every step.
        was_tight = _allocator_retries(device) > retries
        # Reserved, not allocated: what lies between the allocator's blocks is gone, too.
        return torch.cuda.max_memory_reserved(device) <= self.limit and not was_tight

    def _free(self) -> None:
        """Gradients, also of a failed step, and the allocator's cached blocks.

        The blocks have the sizes of this trial: they would not fit the next one.
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
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(HOST_SHARE * psutil.virtual_memory().available / launched_local_world_size())


def _allocator_retries(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device)["num_alloc_retries"])
