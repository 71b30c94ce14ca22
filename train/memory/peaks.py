"""Memory metrics: bytes of weights, gradients and optimizer state, and peaks since the last row.

Peaks are those of the GPU's allocator, or of the process on a CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from train import metric_names
from train.batch.window import Batch, Window
from train.memory.activations import SavedBytes, can_be_counted, without_samples
from train.memory.plan_check import PlanCheck
from train.memory.resident import peak_rss_bytes, reset_peak_rss
from train.memory.sizes import (
    GIB,
    parameters_and_buffers,
    size_text,
    stored_bytes,
    tensors_of,
)
from train.parts import Apart, Part
from train.step import ComputeGradient, Learner

P = ParamSpec("P")
T = TypeVar("T")


def part(
    learner: Learner,
    samples: Batch,
    row_due: Callable[[int], bool],
    apart: Apart,
    prediction: tuple[int, int, int] | None = None,
) -> Part:
    """`samples`: a few that were read already, to try whether activations can be counted on a CPU.

    `prediction`: bytes, samples and micro-batches of a full step; compared with the first one that
    is measured.
    """
    allocator = Allocator(learner.device) if learner.device.type == "cuda" else None
    memory = Memory(learner.module, learner.optimizer, row_due, allocator, prediction)
    # Under FSDP2 autograd also saves the gathered weights: they would count as activations.
    if learner.device.type == "cpu" and not learner.parallel.is_sharded:
        # Two, not one, which BatchNorm in train mode refuses.
        two_samples = {name: column[:2] for name, column in samples.items()}
        memory.counts_activations = can_be_counted(learner, two_samples)
    apart.add(memory.apart)

    return Part(
        name="memory",
        gradient=memory.gradient,
        evaluation=memory.evaluation,
        of_rank=memory.take,
        closing_line=memory.summary,
    )


class Allocator:
    """A GPU's allocator counters, in GiB.

    torch keeps them on the host: reading them does not wait for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocated(self) -> float:
        return torch.cuda.memory_allocated(self._device) / GIB

    def peak_allocated(self) -> float:
        return torch.cuda.max_memory_allocated(self._device) / GIB

    def peak_reserved(self) -> float:
        return torch.cuda.max_memory_reserved(self._device) / GIB

    def reset_peaks(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def retries(self) -> int:
        """How often, since the start, it freed cached blocks to make an allocation fit."""
        return int(torch.cuda.memory_stats(self._device)["num_alloc_retries"])


class Memory:
    """Memory metrics of this rank. What cannot be measured is absent, never 0."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        row_due: Callable[[int], bool],
        allocator: Allocator | None = None,
        prediction: tuple[int, int, int] | None = None,
    ) -> None:
        """`row_due(k)`: whether step k gets a row, and so is measured. `allocator`: on GPUs."""
        self._module = module
        self._optimizer = optimizer
        self._row_due = row_due
        self._allocator = allocator
        self._plan = None if prediction is None else PlanCheck(prediction)
        # Whether activations are counted as what autograd saves: on a CPU, where that is possible.
        self.counts_activations = False
        # The next step, and whether it gets a row: row_due is asked once for each step.
        self._next_step = 0
        self._next_is_due = False
        self._update_hook: Any = None  # on the optimizer, in a step that is measured
        self._peaks: dict[str, float] = {}  # GiB by metric, since the last row
        self._allocated_before = 0.0  # GiB, when the gradient began
        # GiB by metric of what stays in memory, once the optimizer has its state.
        self._persistent: dict[str, float] = {}
        # What was there before the run counts in no row.
        self.take()

    def gradient(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; its peak and the update's are kept in steps that get a row."""

        def counting_activations(learner: Learner, window: Window) -> Tensor:
            with SavedBytes(self._module) as saved:
                losses = compute_gradient(learner, without_samples(window, saved))
            if saved.saw_all:
                self._keep({metric_names.ACTIVATIONS: saved.peak / GIB})
            return losses

        def measured(learner: Learner, window: Window) -> Tensor:
            if self._update_hook is not None:
                self._update_hook.remove()
                self._update_hook = None
            due = self._next_is_due if self._next_step == window.k else self._row_due(window.k)
            self._next_step = window.k + 1
            self._next_is_due = self._row_due(self._next_step)
            # In the step before that of a row: counting takes time, and rows have the times.
            gradient = compute_gradient
            if self.counts_activations and self._next_is_due:
                gradient = counting_activations
            if not due:
                return gradient(learner, window)
            self._begin_plan_check(window)
            self.mark()
            if self._allocator is not None:
                self._allocated_before = self._allocator.allocated()
            try:
                return gradient(learner, window)
            finally:
                self.mark(metric_names.FORWARD_BACKWARD_PEAK)
                # For this update alone: in a step without a row nobody reads the peak, and marking
                # resets it.
                self._update_hook = self._optimizer.register_step_post_hook(self._on_update)

        return measured

    def evaluation(self, evaluate: Callable[P, T]) -> Callable[P, T]:
        """The same function, its peak kept."""

        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            self.mark()
            try:
                return evaluate(*args, **kwargs)
            finally:
                self.mark(metric_names.EVAL_PEAK)

        return measured

    def mark(self, phase: str | None = None) -> None:
        """The end of a phase: keep its peak under this metric name (GPUs only)."""
        if self._allocator is None:
            return
        peaks = {
            metric_names.PEAK_ALLOCATED: self._allocator.peak_allocated(),
            metric_names.PEAK_RESERVED: self._allocator.peak_reserved(),
        }
        self._allocator.reset_peaks()
        if phase:
            peaks[phase] = peaks[metric_names.PEAK_ALLOCATED]
        if phase == metric_names.FORWARD_BACKWARD_PEAK:
            # What the allocator holds before or after, and not a sum of weights, gradients and
            # optimizer state: an average of the weights, buckets and second copies of gradients are
            # no activations either.
            stays = max(self._allocated_before, self._allocator.allocated())
            peaks[metric_names.ACTIVATIONS] = peaks[phase] - stays
        self._keep(peaks)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is computed inside counts for no phase."""
        self.mark()
        rss = peak_rss_bytes() if self._allocator is None else None
        if rss:
            self._keep({metric_names.PEAK_RSS: rss / GIB})
        if self._plan is not None:
            self._plan.abandon()
        try:
            yield
        finally:
            if self._allocator is not None:
                self._allocator.reset_peaks()
            else:
                reset_peak_rss()

    def take(self) -> dict[str, float]:
        """{metric: GiB} since the last call."""
        self.mark()
        peaks = self._peaks
        self._peaks = {}
        if self._allocator is None:
            return self._take_on_cpu(peaks)
        phases = (metric_names.FORWARD_BACKWARD_PEAK, metric_names.OPTIMIZER_PEAK)
        # Both phases: a step that was skipped has no update, and its peak is none of a full step.
        if self._plan is not None and all(phase in peaks for phase in phases):
            self._plan.measured(max(peaks[phase] for phase in phases) * GIB)
        retries = {metric_names.ALLOCATOR_RETRIES: self._allocator.retries()}
        return self._persistent | peaks | self._plan_error() | retries

    def summary(self) -> str:
        """One line for the end of a run; empty where there was no update."""
        if not self._persistent:
            return ""
        sizes = []
        for name, gib in self._persistent.items():
            label = name.removeprefix("memory/").removesuffix("_gib")
            sizes.append(f"{label} {size_text(gib * GIB)}")
        plan = "" if self._plan is None else self._plan.summary()
        return f"memory: {', '.join(sizes)}{plan}"

    def _begin_plan_check(self, window: Window) -> None:
        if self._plan is None:
            return
        self._plan.expect(window)
        # Not in step 1, which makes the optimizer's state: nothing is known to persist before.
        if self._allocator is None and self._persistent:
            tensors = chain.from_iterable(self._tensors().values())
            self._plan.begin(stored_bytes(tensors))

    def _on_update(self, *_: object) -> None:
        """After the optimizer's step. Never called where a step is skipped: it has no update."""
        if self._plan is not None:
            self._plan.end()
        # Right after an update: the gradients are not yet cleared, and the state exists.
        if not self._persistent:
            for name, tensors in self._tensors().items():
                self._persistent[name] = stored_bytes(tensors) / GIB
        self.mark(metric_names.OPTIMIZER_PEAK)

    def _tensors(self) -> dict[str, list[Tensor]]:
        """{metric: tensors} of what persists from step to step."""
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        return {
            metric_names.WEIGHTS: parameters_and_buffers(self._module),
            metric_names.GRADIENTS: gradients,
            metric_names.OPTIMIZER_STATE: list(tensors_of(self._optimizer.state)),
        }

    def _take_on_cpu(self, peaks: dict[str, float]) -> dict[str, float]:
        rss = peak_rss_bytes()
        before_apart = peaks.pop(metric_names.PEAK_RSS, 0.0)
        metrics = self._persistent | peaks
        # Where the kernel's mark cannot be reset, it is that of the whole run: absent.
        if reset_peak_rss() and rss:
            metrics[metric_names.PEAK_RSS] = max(rss / GIB, before_apart)
        return metrics | self._plan_error()

    def _plan_error(self) -> dict[str, float]:
        return {} if self._plan is None else self._plan.error()

    def _keep(self, peaks: Mapping[str, float]) -> None:
        for name, peak in peaks.items():
            self._peaks[name] = max(peak, self._peaks.get(name, 0.0))
