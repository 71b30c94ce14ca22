"""Measures the gradient noise scale on some of the steps. What it is:
comparison/critical_batch.py.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

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

PENDING = 1000  # measurements that wait for a row
ROWS = 100  # timings that are remembered


def part(learner: Learner, config: Config, ranks: Ranks) -> Part:
    """It takes the times of a step from the metrics of the parts inside it."""
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


class NoiseScale:
    """Armed steps read each gradient once more per micro-step; on the others it does nothing."""

    def __init__(self, ranks: Ranks, every_steps: int, obstacle: str = "") -> None:
        """`obstacle`: why nothing can be measured."""
        self._ranks = ranks
        self._wanted = bool(every_steps)
        self._obstacle = obstacle
        self._every_steps = 0 if obstacle else every_steps
        self._averages = Averages()
        # see _measure
        self._pending: deque[tuple[Tensor, Tensor, int, int]] = deque(maxlen=PENDING)
        # (micro_seconds, update_seconds)
        self._costs: deque[tuple[float, float]] = deque(maxlen=ROWS)
        self._micro_steps = 1  # of the last step
        self._armed = False  # the last step was
        self._ragged = False  # the last step took fewer samples or micro-steps than the usual
        # samples of a micro-step over all ranks, micro-steps per step
        self._usual: tuple[float, int] | None = None

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; on armed steps the gradient of each micro-batch is measured. It must
        reduce, too.
        """
        every = self._every_steps
        if not every:
            return compute_gradient

        def watched(learner: Learner, window: Window) -> Tensor:
            self._micro_steps = len(window.micro_batches.sizes)
            self._ragged = self._usual not in (
                None,
                (window.samples / self._micro_steps, self._micro_steps),
            )
            # Odd, and in the middle: rows, and the times in them, are of steps with round numbers,
            # not of these.
            self._armed = (
                window.k - (every // 2 | 1)
            ) % every == 0 and self._micro_steps * self._ranks.world_size > 1
            return (
                self._measure(compute_gradient, learner, window)
                if self._armed
                else compute_gradient(learner, window)
            )

        return watched

    def _measure(
        self, compute_gradient: ComputeGradient, learner: Learner, window: Window
    ) -> Tensor:
        """A hook sees what a backward pass will add to `.grad`; the sums stay on the device until a
        row is due.
        """
        norms: list[list[Tensor]] = []  # of each micro-step: of each parameter

        def on_gradient(gradient: Tensor) -> None:
            norms[-1].append(
                torch.linalg.vector_norm(
                    gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)
                )
            )

        announced = announcing(learner, lambda: norms.append([]))
        expected = sum(window.weights.values())
        hooks = [parameter.register_hook(on_gradient) for parameter in learner.parameters]
        try:
            losses = compute_gradient(announced, window)
        finally:
            for hook in hooks:
                hook.remove()
        parts = torch.zeros((), dtype=torch.float64, device=learner.device)
        sizes = window.micro_batches.sizes
        for size, found in zip(sizes, norms, strict=True):
            if size and found:  # a filler has no weight
                parts += torch.stack(found).square().sum() * (window.samples / size)
        # the step multiplies by the number of ranks what their mean divides by
        parts /= learner.world_size**2
        total = sum(window.weights.values())
        # they may be known late, and divided by late
        parts *= (expected / total) ** 2 if total else math.nan
        gradients = [p.grad for p in learner.parameters if p.grad is not None]
        assert gradients, (
            "a part that leaves the gradient elsewhere stands outside of the noise scale"
        )
        whole = learner.parallel.total_norm(gradients).double() ** 2
        # of float16's loss; else 1
        scale = learner.scaler.scale(torch.ones((), device=learner.device)).double()
        parts, whole = parts / scale**2, whole / scale**2
        # a task with a backward pass of its own
        if any(len(found) > len(learner.parameters) for found in norms):
            parts *= math.nan
        count = sum(size > 0 for size in sizes)
        self._pending.append((parts, whole, count, window.samples))
        if not window.last_of_epoch or self._usual is None:
            self._usual = window.samples / self._micro_steps, self._micro_steps
        return losses

    def take(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """{metric: value} as it is known now, with `seconds`, the times of the last step; all ranks
        call it together.

        Here the host waits for the device, and the ranks send each other two numbers for each
        measurement.
        """
        if self._obstacle:  # what was measured before a resume is of another division
            return dict(seconds)
        self._settle()
        timed = metric_names.FORWARD_BACKWARD_SECONDS in seconds and not self._ragged
        if timed and (not self._armed or self._every_steps == 1):
            sync = seconds.get(metric_names.SYNC_SECONDS, 0.0)  # one rank has none
            micro = (seconds[metric_names.FORWARD_BACKWARD_SECONDS] - sync) / self._micro_steps
            if micro > 0:
                self._costs.append((micro, sync + seconds[metric_names.OPTIMIZER_SECONDS]))
        told, noise, worth = dict(seconds), self._averages.noise_scale(), self._worth()
        if noise:
            told |= {
                metric_names.NOISE_SCALE: noise.value,
                metric_names.NOISE_SCALE_ERROR: noise.error,
            }
        if worth:
            told |= {
                metric_names.BREAK_EVEN: worth.best,
                metric_names.BREAK_EVEN_ERROR: worth.error,
            }
        return told

    def state_dict(self) -> dict[str, Any]:
        """All ranks call it together: measurements that wait for a row are brought in."""
        self._settle()
        return {"averages": dict(vars(self._averages)), "usual": self._usual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._usual = state["usual"]
        vars(self._averages).update(state["averages"])

    def _settle(self) -> None:
        if self._pending:
            parts, wholes, counts, samples = zip(*self._pending, strict=True)
            self._pending.clear()
            on_host = torch.stack([*parts, *wholes]).tolist()
            sums = self._ranks.sum([*on_host[: len(parts)], *counts])
            for each in zip(sums, on_host[len(parts) :], sums[len(parts) :], samples, strict=False):
                self._averages.add(each[0], each[1], int(each[2]), each[3])

    def _worth(self) -> BreakEven | None:
        noise = self._averages.noise_scale()
        if noise is None or self._usual is None or not self._costs:
            return None
        micro, update = (statistics.median(costs) for costs in zip(*self._costs, strict=True))
        ratios = [u / m for m, u in self._costs]
        error = 0.0
        if len(ratios) > 1:  # of a median, from the spread of what it is of
            error = (
                1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios)) / statistics.median(ratios)
            )
        return BreakEven(noise, self._usual[0], micro, update, error)

    def verdict(self) -> str:
        """One sentence for the end of a run; nothing where there was nothing to measure."""
        if self._obstacle:
            return (
                f"accumulation: whether it pays is unknown: {self._obstacle}"
                if self._wanted
                else ""
            )
        if self._usual is None:
            return ""
        worth = self._worth()
        if worth:
            return worth.sentence(self._usual[1])
        what = (
            "no step was timed"
            if self._averages.noise_scale()
            else "the gradient noise is not resolved"
        )
        often = (
            "" if self._every_steps == 1 else " (noise_scale.every_steps=1 measures at each step)"
        )
        count = counted(self._averages.count, "measurement")
        return f"accumulation: whether it pays is unknown: {what} after {count}{often}"
