"""The gradient noise scale, measured on some of the steps, and what follows from it: does accumulation pay?

Model (McCandlish et al. 2018, arXiv:1812.06162): the gradient of n samples is the true one, G, plus noise of variance
trace(S) / n. The noise scale trace(S) / |G|^2, in samples, is the batch from which on a larger one mostly costs samples.
Estimated by an analysis of variance over all micro-batches j, and ranks, of a step: of n_j of its N samples, with the
part h_j of its gradient g = sum of h_j, as it was computed with weights w_j = n_j / N,

    trace(S) = N / (K - 1) * (sum of |h_j|^2 / w_j - |g|^2)        |G|^2 = |g|^2 - trace(S) / N

Both are without bias, for micro-batches of any sizes, and either may be negative in one step: they are averaged over
steps, apart, before they are divided. The unit is samples, also where a loss is divided by something else, such as
tokens: the noise scale is then too large, by about the squared coefficient of variation of the weights (below 1 sample,
as a rule).
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train import names
from train.ranks import Ranks
from train.step import ComputeGradient, Learner
from train.window import Window

SMOOTHING = 0.998  # of the averages: they reach back about 1,000 measurements, or to the start of a shorter run
FEWEST = 10  # measurements before anything is said
PENDING = 1000  # measurements that wait for a row
ROWS = 100  # timings that are remembered


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float  # relative: one standard error


class Averages:
    """Numerator and denominator of the noise scale, each an exponential moving average without the bias of its start.

    Its weights a_i sum up to 1, so the variance of an average is q times that of one measurement, q = sum of a_i^2.
    """

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self._smoothing = smoothing
        self.count = 0
        self._moments = (0.0,) * 5  # of (trace(S), |G|^2) = (s, g): s, g, s*s, s*g, g*g; weights that sum up to less
        self._squares = 0.0  # the sum of those weights, squared

    def add(self, parts: float, whole: float, count: int, samples: float) -> None:
        """A step of `count` micro-batches and `samples` samples over all ranks: sum of |h_j|^2 / w_j, and |g|^2.

        One that is not finite counts for nothing, and so does one of a single micro-batch.
        """
        if count < 2 or not math.isfinite(parts + whole):
            return
        s = samples / (count - 1) * (parts - whole)
        g = whole - s / samples
        old, new = self._smoothing, 1 - self._smoothing
        self.count += 1
        self._moments = tuple(
            old * m + new * x for m, x in zip(self._moments, (s, g, s * s, s * g, g * g), strict=True)
        )
        self._squares = old**2 * self._squares + new**2

    def noise_scale(self) -> Estimate | None:
        """In samples. None while |G|^2 is not known to two standard errors: a ratio to noise is a wild number."""
        if self.count < FEWEST:
            return None
        total = 1 - self._smoothing**self.count
        s, g, ss, sg, gg = (moment / total for moment in self._moments)
        q = self._squares / total**2
        spread = q / (1 - q)  # of an average, from the spread of the measurements around it
        var_s, cov, var_g = spread * (ss - s * s), spread * (sg - s * g), spread * (gg - g * g)
        if s <= 0 or g <= 2 * math.sqrt(max(0.0, var_g)):
            return None
        error = var_s / s**2 - 2 * cov / (s * g) + var_g / g**2  # of a ratio, to first order
        return Estimate(s / g, math.sqrt(max(0.0, error)))


@dataclass(frozen=True)
class Worth:
    """Is accumulation worth it? From the noise scale, taken for the critical batch, and what was measured of time.

    A step of k micro-steps takes k * micro_seconds + update_seconds, and the steps to a loss go with
    1 + noise scale / (k * samples), if the rate is tuned to each batch: their product is least at k = best.
    """

    noise: Estimate
    samples: float  # of one micro-step, over all ranks
    micro_seconds: float
    update_seconds: float  # synchronisation and optimizer: once per step
    cost_error: float = 0.0  # of update_seconds / micro_seconds, relative: one standard error

    @property
    def best(self) -> float:
        """The break-even number of micro-steps: more of them take longer to the same loss than they save."""
        return math.sqrt(self.noise.value / self.samples * self.update_seconds / self.micro_seconds)

    @property
    def error(self) -> float:
        """Of `best`, relative: one standard error."""
        return math.hypot(self.noise.error, self.cost_error) / 2

    def time(self, k: float) -> float:
        """To the same loss, in seconds times a constant."""
        steps = 1 + self.noise.value / (k * self.samples)
        return steps * (k * self.micro_seconds + self.update_seconds)

    def sentence(self, k: int) -> str:
        """For a run that took `k` micro-steps per step."""
        best = max(1, round(self.best))
        least, most = (max(1, round(self.best * math.exp(sign * 2 * self.error))) for sign in (-1, 1))
        between = f" ({least} to {most})" if least < most else ""
        ratio = self.time(k) / self.time(best)
        if best == 1:
            advice = "does not pay by itself here"
        else:
            advice = f"pays up to about {best} micro-steps{between}"
        if ratio < 1.05:
            judged = f"the {k} of this run are within 5 % of that" if k != best else f"this run took {k}"
        else:
            judged = f"the {k} of this run take an estimated {ratio:.2g} times as long to the same loss"
        return (
            f"{advice}: noise scale {self.noise.value:,.3g} samples +- {2 * self.noise.error:.0%}, "
            f"{_time(self.micro_seconds)} per micro-step of {self.samples:.4g}, {_time(self.update_seconds)} for "
            f"synchronisation and optimizer; {judged}"
        )


class NoiseScale:
    """Measures on armed steps, from outside the loop. An armed step reads each gradient once more per micro-step."""

    def __init__(self, ranks: Ranks, every_steps: int) -> None:
        self._ranks = ranks
        self._every_steps = every_steps
        self._averages = Averages()
        self._pending: deque[tuple[Tensor, Tensor, int, int]] = deque(maxlen=PENDING)  # see _measure
        self._costs: deque[tuple[float, float]] = deque(maxlen=ROWS)  # (micro_seconds, update_seconds)
        self._micro_steps = 1  # of the last step
        self._armed = False  # the last step was
        self._usual: tuple[float, int] | None = None  # samples of a micro-step over all ranks, micro-steps per step

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; on armed steps the gradient of each micro-batch is measured. It must reduce, too."""
        every = self._every_steps
        if not every:
            return compute_gradient

        def watched(learner: Learner, window: Window) -> Tensor:
            self._micro_steps = len(window.micro_batches)
            # In the middle between round numbers: rows, and the times in them, are of steps that are not armed.
            self._armed = (window.k + every // 2) % every == 0 and self._micro_steps * self._ranks.world_size > 1
            return (
                self._measure(compute_gradient, learner, window) if self._armed else compute_gradient(learner, window)
            )

        return watched

    def _measure(self, compute_gradient: ComputeGradient, learner: Learner, window: Window) -> Tensor:
        """A hook sees what a backward pass is about to add to `.grad`: the sums stay on the device until a row is due."""
        norms: list[list[Tensor]] = []  # of each micro-step: of each parameter

        def on_gradient(gradient: Tensor) -> None:
            norms[-1].append(
                torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
            )

        announced = replace(learner, task=_Announced(learner.task, lambda: norms.append([])))
        hooks = [parameter.register_hook(on_gradient) for parameter in learner.parameters]
        try:
            losses = compute_gradient(announced, window)
        finally:
            for hook in hooks:
                hook.remove()
        parts = torch.zeros((), dtype=torch.float64, device=learner.device)
        for micro_batch, found in zip(window.micro_batches, norms, strict=True):
            if micro_batch.samples and found:  # a filler has no weight
                parts += torch.stack(found).square().sum() * (window.samples / micro_batch.samples)
        parts /= learner.world_size**2  # the step multiplies by the number of ranks what their mean divides by
        whole = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters if p.grad is not None]).double() ** 2
        # float16: both are still multiplied by the square of the loss's scale; divide them by it here.
        if any(len(found) > len(learner.parameters) for found in norms):  # a task with a backward pass of its own
            parts *= math.nan
        count = sum(micro_batch.samples > 0 for micro_batch in window.micro_batches)
        self._pending.append((parts, whole, count, window.samples))
        if not window.last_of_epoch or self._usual is None:
            self._usual = window.samples / self._micro_steps, self._micro_steps
        return losses

    def take(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """{metric: value} as it is known now, with `seconds`, the times of the last step; all ranks call it together.

        Here the host waits for the device, and the ranks send each other two numbers for each measurement.
        """
        if self._pending:
            parts, wholes, counts, samples = zip(*self._pending, strict=True)
            self._pending.clear()
            on_host = torch.stack([*parts, *wholes]).tolist()
            sums = self._ranks.sum([*on_host[: len(parts)], *counts])
            for each in zip(sums, on_host[len(parts) :], sums[len(parts) :], samples, strict=False):
                self._averages.add(each[0], each[1], int(each[2]), each[3])
        if names.SYNC_SECONDS in seconds and (not self._armed or self._every_steps == 1):
            sync = seconds[names.SYNC_SECONDS]
            micro = (seconds[names.FORWARD_BACKWARD_SECONDS] - sync) / self._micro_steps
            self._costs.append((micro, sync + seconds[names.OPTIMIZER_SECONDS]))
        told, noise, worth = dict(seconds), self._averages.noise_scale(), self._worth()
        if noise:
            told[names.NOISE_SCALE] = noise.value
        if worth:
            told[names.BREAK_EVEN] = worth.best
        return told

    def _worth(self) -> Worth | None:
        noise = self._averages.noise_scale()
        if noise is None or self._usual is None or not self._costs:
            return None
        micro, update = (statistics.median(costs) for costs in zip(*self._costs, strict=True))
        ratios = [u / m for m, u in self._costs]
        error = 0.0
        if len(ratios) > 1:  # of a median, from the spread of what it is of
            error = 1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios)) / statistics.median(ratios)
        return Worth(noise, self._usual[0], micro, update, error)

    def verdict(self) -> str:
        """One sentence for the end of a run; nothing where there was nothing to measure."""
        if self._usual is None:
            return ""
        worth = self._worth()
        if worth is None:
            return (
                f"accumulation: whether it pays is unknown: {self._averages.count} measurements do not tell the noise"
            )
        return f"accumulation {worth.sentence(self._usual[1])}"


class _Announced:
    """A task that tells when a micro-step begins: loss_sum is called once in each."""

    def __init__(self, task: Any, begin: Callable[[], None]) -> None:
        self._task = task
        self._begin = begin

    def loss_sum(self, model: Any, batch: Any) -> Any:
        self._begin()
        return self._task.loss_sum(model, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
