"""What a run holds in memory: weights, gradients and optimizer state to the byte, and the peak
since the last look.

The peak is that of the GPU's allocator, or of the process on a CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from train import metric_names
from train.batch.window import Batch, Window
from train.memory.activations import SavedBytes, can_be_counted, held, without_samples
from train.memory.plan_check import PlanCheck
from train.memory.resident import peak_rss_bytes, reset_peak_rss
from train.memory.sizes import GIB, stored_bytes, tensors_of
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
    """`samples`: some that were read already; two of them show whether activations can be counted
    on a CPU.

    `prediction`: bytes, samples and micro-batches of a full step; the first one that is measured is
    held against it.
    """
    allocator = Allocator(learner.device) if learner.device.type == "cuda" else None
    memory = Memory(learner.module, learner.optimizer, row_due, allocator, prediction)
    # Under FSDP2 autograd also saves weights that were gathered: they would count as activations.
    if learner.device.type == "cpu" and not learner.parallel.is_sharded:
        memory.counts_saved = can_be_counted(
            learner, {name: column[:2] for name, column in samples.items()}
        )
    apart.add(memory.apart)

    return Part(
        name="memory",
        gradient=memory.gradient,
        evaluation=memory.evaluation,
        of_rank=memory.take,
        closing_line=memory.summary,
    )


class Allocator:
    """A GPU's own counters, in GiB. They are kept on the host: asking them waits for nothing."""

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
        """Since the start: how often it freed what it had kept."""
        return int(torch.cuda.memory_stats(self._device)["num_alloc_retries"])


class Memory:
    """Of this rank. What cannot be measured is absent, never 0."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        row_due: Callable[[int], bool],
        allocator: Allocator | None = None,
        prediction: tuple[int, int, int] | None = None,
    ) -> None:
        """`row_due(k)`: whether step k gets a row; its phases are measured apart. `allocator`: None
        on a CPU.
        """
        self._plan = PlanCheck(prediction) if prediction is not None else None
        self._allocator = allocator
        self._row_due = row_due
        self._upcoming: tuple[int, bool] = (0, False)  # the next step, and whether it gets a row
        self._update_hook: Any = None  # on a step that is measured
        # activations are counted as what autograd saves: on a CPU, where it can be done
        self.counts_saved = False
        self._peaks: dict[str, float] = {}
        self._before = 0.0  # allocated when the gradient began
        self._held: dict[str, float] = {}  # all the time, once the optimizer has its state
        self._module = module
        self._optimizer = optimizer
        self.take()

    def _weigh(self) -> None:
        """Right after an update: the gradients are still there, and the optimizer's state is."""
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        parts = {
            metric_names.WEIGHTS: held(self._module),
            metric_names.GRADIENTS: gradients,
            metric_names.OPTIMIZER_STATE: tensors_of(self._optimizer.state),
        }
        self._held = {name: stored_bytes(tensors) / GIB for name, tensors in parts.items()}

    def _all_held(self) -> int:
        gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
        return stored_bytes([*held(self._module), *gradients, *tensors_of(self._optimizer.state)])

    def mark(self, phase: str | None = None) -> None:
        """A phase ends here: keep its peak under this metric name (GPUs only; asks the allocator's
        own counters).
        """
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
            # Not a sum of what is known to be held: averages of weights, buckets and second copies
            # of gradients are nobody's activations, whoever holds them.
            stays = max(self._before, self._allocator.allocated())
            peaks[metric_names.ACTIVATIONS] = peaks[phase] - stays
        self._keep(peaks)

    def _keep(self, peaks: Mapping[str, float]) -> None:
        for name, peak in peaks.items():
            self._peaks[name] = max(peak, self._peaks.get(name, 0.0))

    def gradient(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, its peak and that of the update kept on the steps that get a row."""

        def counted(learner: Learner, window: Window) -> Tensor:
            with SavedBytes(self._module) as saved:
                losses = compute_gradient(learner, without_samples(window, saved))
            if saved.saw_all:
                self._keep({metric_names.ACTIVATIONS: saved.peak / GIB})
            return losses

        def watched(learner: Learner, window: Window) -> Tensor:
            if self._update_hook is not None:
                self._update_hook.remove()
                self._update_hook = None
            known, due = self._upcoming
            due = due if known == window.k else self._row_due(window.k)
            self._upcoming = window.k + 1, self._row_due(window.k + 1)
            gradient = counted if self.counts_saved and self._upcoming[1] else compute_gradient
            if not due:
                return gradient(learner, window)
            if self._plan is not None:
                self._plan.sees(window)
                if self._allocator is None and self._held:  # step 1 made the optimizer's state
                    self._plan.begin(self._all_held())
            self.mark()
            if self._allocator is not None:
                self._before = self._allocator.allocated()
            try:
                return gradient(learner, window)
            finally:
                self.mark(metric_names.FORWARD_BACKWARD_PEAK)
                self._update_hook = self._optimizer.register_step_post_hook(self._on_update)

        return watched

    def _on_update(self, *_: object) -> None:
        """Not where a step is left out: there is no update then, and no peak of one."""
        if self._plan is not None:
            self._plan.end()
        if not self._held:
            self._weigh()
        self.mark(metric_names.OPTIMIZER_PEAK)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What takes place inside is no phase's."""
        self.mark()
        peak = peak_rss_bytes() if self._allocator is None else None
        if peak:
            self._keep({metric_names.PEAK_RSS: peak / GIB})
        if self._plan is not None:
            self._plan.give_up()
        try:
            yield
        finally:
            if self._allocator is not None:
                self._allocator.reset_peaks()
            else:
                reset_peak_rss()

    def evaluation(self, evaluate: Callable[P, T]) -> Callable[P, T]:
        """The same function, its peak kept."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            self.mark()
            try:
                return evaluate(*args, **kwargs)
            finally:
                self.mark(metric_names.EVAL_PEAK)

        return watched

    def take(self) -> dict[str, float]:
        """{metric: GiB} since the last call."""
        self.mark()
        peaks, self._peaks = self._peaks, {}
        if self._allocator is None:
            peak = peak_rss_bytes()
            earlier = peaks.pop(metric_names.PEAK_RSS, 0.0)
            rss = (
                {metric_names.PEAK_RSS: max(peak / GIB, earlier)}
                if reset_peak_rss() and peak
                else {}
            )
            return self._held | peaks | rss | self._plan_error()
        phases = (metric_names.FORWARD_BACKWARD_PEAK, metric_names.OPTIMIZER_PEAK)
        if self._plan is not None and all(phase in peaks for phase in phases):
            self._plan.measured(max(peaks[phase] for phase in phases) * GIB)
        return (
            self._held
            | peaks
            | self._plan_error()
            | {metric_names.ALLOCATOR_RETRIES: self._allocator.retries()}
        )

    def summary(self) -> str:
        """One line for the end of a run; nothing where there was no update."""
        parts = {
            name.removeprefix("memory/").removesuffix("_gib"): gib
            for name, gib in self._held.items()
        }
        line = (
            f"memory: {', '.join(f'{part} {_size(gib)}' for part, gib in parts.items())}"
            if parts
            else ""
        )
        return line + self._plan.summary() if line and self._plan is not None else line

    def _plan_error(self) -> dict[str, float]:
        return {} if self._plan is None else self._plan.error()


def _size(gib: float) -> str:
    return f"{gib:.3g} GiB" if gib >= 0.1 else f"{gib * 1024:.3g} MiB"
