"""Is accumulation worth it? The arithmetic of the gradient noise scale; pure.

Model (McCandlish et al. 2018, arXiv:1812.06162): the gradient of n samples is the true one, G, plus
noise of variance trace(S) / n. The noise scale trace(S) / |G|^2, in samples, is the batch beyond
which more samples hardly save steps. Estimated by an analysis of variance over the K micro-batches
j of a step, of all ranks: n_j of its N samples each, w_j = n_j / N, and h_j what each added to the
gradient g of the step:

    trace(S) = N / (K - 1) * (sum of |h_j|^2 / w_j - |g|^2)        |G|^2 = |g|^2 - trace(S) / N

Both are without bias, for micro-batches of any sizes, and either may be negative in one step: each
is averaged over steps before they are divided. The unit is samples, also where a loss is divided by
something else, such as tokens: the noise scale is then too large, by about the squared coefficient
of variation of the weights (below 1 sample, as a rule).
"""

import math
from dataclasses import dataclass

# Of the averages: they reach back about 1,000 measurements, or to the start of a shorter run.
SMOOTHING = 0.998
FEWEST = 10
"""Measurements before there is an estimate."""


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float
    """Relative: one standard error."""


class Averages:
    """Numerator and denominator of the noise scale.

    Each is an exponential moving average, corrected for the bias of its start (as in Adam). With
    weights a_i that sum up to 1, the variance of an average is q times that of one measurement,
    q = sum of a_i^2.
    """

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self._smoothing = smoothing
        self.count = 0
        # Of s = trace(S) and g = |G|^2: s, g, s*s, s*g, g*g; not yet corrected.
        self._moments: tuple[float, ...] = (0.0,) * 5
        self._squares = 0.0  # the sum of the squares of the weights; not yet corrected

    def add(self, micro_squares: float, step_square: float, count: int, samples: float) -> None:
        """A step of `count` micro-batches and `samples` samples, over all ranks.

        `micro_squares`: sum of |h_j|^2 / w_j. `step_square`: |g|^2. A step that is not finite is
        ignored, and so is one of a single micro-batch.
        """
        # One micro-batch has no variance, and NaN would stay in the averages for ever.
        if count < 2 or not math.isfinite(micro_squares + step_square):
            return
        s = samples / (count - 1) * (micro_squares - step_square)
        g = step_square - s / samples
        decay = self._smoothing
        self.count += 1
        measured = zip(self._moments, (s, g, s * s, s * g, g * g), strict=True)
        self._moments = tuple(decay * moment + (1 - decay) * x for moment, x in measured)
        self._squares = decay**2 * self._squares + (1 - decay) ** 2

    def noise_scale(self) -> Estimate | None:
        """In samples.

        None while |G|^2 is within two standard errors of zero: a ratio to noise may be any number.
        """
        if self.count < FEWEST:
            return None
        # The weights of an average that begins at zero sum up to 1 - smoothing**count.
        total = 1 - self._smoothing**self.count
        s, g, ss, sg, gg = (moment / total for moment in self._moments)
        # q of the corrected weights: the variance of the average in units of that of a measurement.
        q = self._squares / total**2
        # The variance of an average, from that of the measurements around it.
        # Around a weighted mean the measurements spread by 1 - q of their variance.
        factor = q / (1 - q)
        var_s = factor * (ss - s * s)
        cov = factor * (sg - s * g)
        var_g = factor * (gg - g * g)
        # A variance is positive, and a denominator that may be zero gives no ratio.
        if s <= 0 or g <= 2 * math.sqrt(max(0.0, var_g)):
            return None
        # Of a ratio, to first order (the delta method).
        relative_variance = var_s / s**2 - 2 * cov / (s * g) + var_g / g**2
        return Estimate(s / g, math.sqrt(max(0.0, relative_variance)))


@dataclass(frozen=True)
class BreakEven:
    """Is accumulation worth it? From the noise scale, taken for the critical batch, and the times.

    A step of k micro-steps takes k * micro_seconds + update_seconds, and the steps to a loss go
    with 1 + noise scale / (k * samples), if the rate is tuned to each batch: their product is least
    at k = best.
    """

    noise: Estimate
    samples: float
    """Of one micro-step, over all ranks."""
    micro_seconds: float
    update_seconds: float
    """Synchronisation and optimizer: once per step."""
    cost_error: float = 0.0
    """Of update_seconds / micro_seconds, relative: one standard error."""

    @property
    def best(self) -> float:
        """Micro-steps per step: more of them cost more time than they save in steps."""
        # Where the derivative of time(k) is zero:
        # micro_seconds - noise / samples * update_seconds / k**2.
        return math.sqrt(self.noise.value / self.samples * self.update_seconds / self.micro_seconds)

    @property
    def error(self) -> float:
        """Of `best`, relative: one standard error."""
        return math.hypot(self.noise.error, self.cost_error) / 2  # of a square root: half

    def time(self, k: float) -> float:
        """To the same loss, in seconds times a constant."""
        steps = 1 + self.noise.value / (k * self.samples)
        return steps * (k * self.micro_seconds + self.update_seconds)

    def longer(self, k: float) -> float:
        """How much longer `k` micro-steps per step take than the best integer number of them.

        0.1: 10 % longer.
        """
        # Against a number of micro-steps that can be configured: `best` itself is no integer.
        return self.time(k) / self.time(integer_micro_steps(self.best)) - 1

    def sentence(self, k: int) -> str:
        """What that means for a run that took `k` micro-steps per step."""
        least, most = error_interval(self.best, self.error)
        text = advice(
            best=self.best,
            least=least,
            most=most,
            longer=self.longer(k),
            current=f"the {k} of this run",
            micro_steps=k,
        )
        return (
            f"accumulation: {text} (estimated from a noise scale of {self.noise.value:,.3g} "
            f"samples +- {2 * self.noise.error:.0%}, {_time(self.micro_seconds)} per micro-step of "
            f"{self.samples:.3g} samples, {_time(self.update_seconds)} per synchronisation and "
            "optimizer)"
        )


def error_interval(value: float, error: float) -> tuple[float, float]:
    """Two standard errors, as a factor, to both sides."""
    # exp, not 1 +- 2 e: for an error of 60 % the lower end would be below zero.
    return value * math.exp(-2 * error), value * math.exp(2 * error)


def integer_micro_steps(micro_steps: float) -> int:
    return max(1, round(micro_steps))


def advice(
    *, best: float, least: float, most: float, longer: float, current: str, micro_steps: int
) -> str:
    """`about 2 micro-steps (2 to 3) would be fastest to the same loss; CURRENT take 15% longer`.

    `least` to `most`: the interval of `best`. CURRENT are `micro_steps`; where the interval holds
    them, it is unknown whether more or fewer would be faster.
    """
    # Rounded for people. The interval is rounded apart, and may shrink to one number.
    nearest = integer_micro_steps(best)
    fewest = integer_micro_steps(least)
    largest = integer_micro_steps(most)
    interval = f" ({fewest} to {largest})" if fewest < largest else ""
    if nearest > 1:
        fastest = f"about {nearest} micro-steps{interval} would be fastest to the same loss"
    else:
        fastest = f"1 micro-step{interval} would be fastest to the same loss"
        if largest == 1:
            fastest += ", so it does not pay by itself"
    # First of all: a longer time within the interval would be a verdict inside its own error.
    if fewest <= micro_steps <= largest:
        return (
            f"{fastest}; whether it pays is unknown: the estimate cannot tell them from {current}"
        )
    verb = "takes" if micro_steps == 1 else "take"
    if longer < 0.05:
        cost = "at most 5% longer"
    elif longer < 1:
        cost = f"{longer:.0%} longer"
    else:
        cost = f"{1 + longer:.2g} times as long"
    return f"{fastest}; {current} {verb} {cost}"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s"
