"""Measures the gradient noise scale in some of the steps.

What it is, and the formulas: comparison/critical_batch.py. Measured here, in a step of N samples
whose micro-batches j have n_j samples each:

    sum over j of |h_j|^2 / w_j,  w_j = n_j / N,  h_j: what micro-batch j added to the gradient
    |g|^2,                        g: the gradient of the step
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train import metric_names
from train.batch.window import Window
from train.comparison.critical_batch import Averages, BreakEven
from train.config import Config
from train.distributed.ranks import Ranks
from train.errors import counted
from train.metrics.micro_steps import announcing
from train.parts import Part
from train.step import ComputeGradient, Learner

MAX_PENDING = 1000  # measurements between two rows
MAX_COSTS = 100  # step costs that are remembered


def part(learner: Learner, config: Config, ranks: Ranks) -> Part:
    """Takes the times of a step from the metrics of the parts inside it."""
    obstacle = ""
    if config.batch.micro_tokens is not None:
        obstacle = (
            "the estimate needs micro-batches drawn at random, and batch.micro_tokens sorts them "
            "by length"
        )
    elif learner.parallel.is_sharded:
        obstacle = (
            "the estimate needs the gradient of each micro-batch on each rank, of which FSDP2 "
            "shows none"
        )
    noise = NoiseScale(ranks, config.noise_scale.every_steps, obstacle)
    return Part(
        name="noise_scale",
        gradient=noise.around,
        metrics=noise.take,
        state=noise,
        closing_line=noise.verdict,
    )


class _Measurement(NamedTuple):
    """Of one step; tensors stay on the device until a row is due."""

    squared_parts: Tensor  # sum of |h_j|^2 / w_j over this rank's micro-batches, 0-dim float64
    squared_norm: Tensor  # |g|^2, 0-dim float64
    micro_batches: int  # of this rank, fillers excluded
    samples: int  # of the step, over all ranks


class _StepCost(NamedTuple):
    micro_seconds: float  # of one micro-step
    update_seconds: float  # of synchronisation and optimizer, once per step


class NoiseScale:
    """Measures every n-th step, at one more read of each gradient per micro-step."""

    def __init__(self, ranks: Ranks, every_steps: int, obstacle: str = "") -> None:
        """`obstacle`: why nothing can be measured."""
        self._ranks = ranks
        self._is_configured = bool(every_steps)
        self._obstacle = obstacle
        self._every_steps = 0 if obstacle else every_steps
        self._averages = Averages()
        self._pending: deque[_Measurement] = deque(maxlen=MAX_PENDING)
        self._costs: deque[_StepCost] = deque(maxlen=MAX_COSTS)
        # Of the last step:
        self._micro_steps = 1
        self._was_measured = False
        self._was_ragged = False  # fewer samples or micro-steps than usual
        # Of a usual step, which is not the last of an epoch: samples of a micro-step over all
        # ranks, and micro-steps.
        self._usual: tuple[float, int] | None = None

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; in measured steps it sees the gradient of each micro-batch.

        It stands around the reduction, too.
        """
        every = self._every_steps
        if not every:
            return compute_gradient
        # Odd, and in the middle of an interval: rows, and the times in them, are of steps with
        # round numbers, which must not be slowed down by the measurement.
        first = every // 2 | 1

        def watched(learner: Learner, window: Window) -> Tensor:
            micro_steps = len(window.micro_batches.sizes)
            shape = (window.samples / micro_steps, micro_steps)
            self._micro_steps = micro_steps
            self._was_ragged = self._usual is not None and shape != self._usual
            # One micro-batch alone has no variance.
            several = micro_steps * self._ranks.world_size > 1
            self._was_measured = (window.k - first) % every == 0 and several
            if self._was_measured:
                return self._measure(compute_gradient, learner, window)
            return compute_gradient(learner, window)

        return watched

    def _measure(
        self, compute_gradient: ComputeGradient, learner: Learner, window: Window
    ) -> Tensor:
        """Computes the gradient and measures it, without waiting for the device."""
        norms: list[list[Tensor]] = []  # by micro-step, then by parameter

        def on_gradient(gradient: Tensor) -> None:
            """Called with what a backward pass will add to `.grad`."""
            wide = torch.promote_types(gradient.dtype, torch.float32)
            norms[-1].append(torch.linalg.vector_norm(gradient, dtype=wide))

        announced = announcing(learner, lambda: norms.append([]))
        weight_before = sum(window.weights.values())
        hooks = [parameter.register_hook(on_gradient) for parameter in learner.parameters]
        try:
            losses = compute_gradient(announced, window)
        finally:
            for hook in hooks:
                hook.remove()
        squared_parts = _squared_parts(norms, learner, window)
        # Weights may be known only at the update (gradients/late_weights.py), which then divides
        # the gradient: the hooks saw one that was not yet divided.
        weight_after = sum(window.weights.values())
        squared_parts *= (weight_before / weight_after) ** 2 if weight_after else math.nan
        gradients = [p.grad for p in learner.parameters if p.grad is not None]
        assert gradients, (
            "a part that leaves the gradient elsewhere stands outside of the noise scale"
        )
        squared_norm = learner.parallel.total_norm(gradients).double() ** 2
        # The loss scale of float16; else 1.
        scale = learner.scaler.scale(torch.ones((), device=learner.device)).double()
        self._pending.append(
            _Measurement(
                squared_parts=squared_parts / scale**2,
                squared_norm=squared_norm / scale**2,
                micro_batches=sum(size > 0 for size in window.micro_batches.sizes),
                samples=window.samples,
            )
        )
        if not window.last_of_epoch or self._usual is None:
            self._usual = (window.samples / self._micro_steps, self._micro_steps)
        return losses

    def take(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """{metric: value} so far, added to `seconds`, the times of the last step.

        All ranks call it together. The host waits for the device here, and the ranks send each
        other two numbers for each measurement.
        """
        metrics = dict(seconds)
        if self._obstacle:  # measurements from before a resume are of another division
            return metrics
        self._settle()
        self._add_cost(seconds)
        noise = self._averages.noise_scale()
        if noise:
            metrics[metric_names.NOISE_SCALE] = noise.value
            metrics[metric_names.NOISE_SCALE_ERROR] = noise.error
        worth = self._worth()
        if worth:
            metrics[metric_names.BREAK_EVEN] = worth.best
            metrics[metric_names.BREAK_EVEN_ERROR] = worth.error
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All ranks call it together: pending measurements are summed over them."""
        self._settle()
        return {"averages": dict(vars(self._averages)), "usual": self._usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._usual = state["usual"]
        vars(self._averages).update(state["averages"])

    def verdict(self) -> str:
        """One sentence for the end of a run; empty where nothing was to be measured."""
        unknown = "accumulation: whether it pays is unknown"
        if self._obstacle:
            return f"{unknown}: {self._obstacle}" if self._is_configured else ""
        if self._usual is None:
            return ""
        worth = self._worth()
        if worth:
            _, micro_steps = self._usual
            return worth.sentence(micro_steps)
        why = "the gradient noise is not resolved"
        if self._averages.noise_scale():
            why = "no step was timed"
        count = counted(self._averages.count, "measurement")
        hint = ""
        if self._every_steps != 1:
            hint = " (noise_scale.every_steps=1 measures at each step)"
        return f"{unknown}: {why} after {count}{hint}"

    def _settle(self) -> None:
        """Read the pending measurements from the device, and sum them over the ranks."""
        if not self._pending:
            return
        pending = list(self._pending)
        self._pending.clear()
        # One copy from the device, and one message, for all of them.
        tensors = [each.squared_parts for each in pending]
        tensors += [each.squared_norm for each in pending]
        numbers = torch.stack(tensors).tolist()
        parts = numbers[: len(pending)]
        norms = numbers[len(pending) :]  # the same on all ranks
        sums = self._ranks.sum([*parts, *(each.micro_batches for each in pending)])
        for i, each in enumerate(pending):
            micro_batches = int(sums[len(pending) + i])
            self._averages.add(sums[i], norms[i], micro_batches, each.samples)

    def _add_cost(self, seconds: Mapping[str, float]) -> None:
        """Remember what a usual step costs, unless it was slowed down by a measurement."""
        if metric_names.FORWARD_BACKWARD_SECONDS not in seconds or self._was_ragged:
            return
        if self._was_measured and self._every_steps != 1:
            return
        sync = seconds.get(metric_names.SYNC_SECONDS, 0.0)  # a single rank has none
        micro = (seconds[metric_names.FORWARD_BACKWARD_SECONDS] - sync) / self._micro_steps
        if micro > 0:
            self._costs.append(_StepCost(micro, sync + seconds[metric_names.OPTIMIZER_SECONDS]))

    def _worth(self) -> BreakEven | None:
        noise = self._averages.noise_scale()
        if noise is None or self._usual is None or not self._costs:
            return None
        samples, _ = self._usual
        return BreakEven(
            noise=noise,
            samples=samples,
            micro_seconds=statistics.median(cost.micro_seconds for cost in self._costs),
            update_seconds=statistics.median(cost.update_seconds for cost in self._costs),
            cost_error=_cost_error(self._costs),
        )


def _squared_parts(norms: Sequence[Sequence[Tensor]], learner: Learner, window: Window) -> Tensor:
    """The sum of |h_j|^2 / w_j over this rank's micro-batches: 0-dim, float64.

    `norms`: by micro-step, of the gradient of each parameter.
    """
    total = torch.zeros((), dtype=torch.float64, device=learner.device)
    for size, of_parameters in zip(window.micro_batches.sizes, norms, strict=True):
        if size and of_parameters:  # a filler has no weight
            total += torch.stack(list(of_parameters)).square().sum() * (window.samples / size)
    # A micro-step multiplies by the number of ranks, by which the mean over them then divides.
    total /= learner.world_size**2
    # A task that calls backward itself: the hooks saw more than one gradient.
    if any(len(of_parameters) > len(learner.parameters) for of_parameters in norms):
        total *= math.nan
    return total


def _cost_error(costs: Sequence[_StepCost]) -> float:
    """The relative standard error of the median of update_seconds / micro_seconds."""
    ratios = [cost.update_seconds / cost.micro_seconds for cost in costs]
    if len(ratios) < 2:
        return 0.0
    # Of normal numbers the median has sqrt(pi / 2) = 1.25 times the standard error of the mean.
    error = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    return error / statistics.median(ratios)
