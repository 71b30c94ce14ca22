"""Is accumulation worth it? The arithmetic of the gradient noise scale; pure.

Model (McCandlish et al. 2018, arXiv:1812.06162): the gradient of n samples is the true one, G, plus
noise of variance trace(S) / n. The noise scale trace(S) / |G|^2, in samples, is the batch beyond
which more samples hardly save steps. Estimated by an analysis of variance over the K micro-batches
j of a step, of all ranks: n_j of its N samples each, w_j = n_j / N, and h_j what each added to the
gradient g of the step:

    trace(S) = N / (K - 1) * (sum of |h_j|^2 / w_j - |g|^2)        |G|^2 = |g|^2 - trace(S) / N

Both are without bias, for micro-batches of any sizes, and either may be negative in one step: they
are averaged over steps, apart, before they are divided. The unit is samples, also where a loss is
divided by something else, such as tokens: the noise scale is then too large, by about the squared
coefficient of variation of the weights (below 1 sample, as a rule).
"""

import math
from dataclasses import dataclass

# of the averages: they reach back about 1,000 measurements, or to the start of a shorter run
SMOOTHING = 0.998
FEWEST = 10  # measurements before anything is said


@dataclass(frozen=True)
class Estimate:
    value: float
    error: float  # relative: one standard error


class Averages:
    """Numerator and denominator of the noise scale, each an exponential moving average without the
    bias of its start.

    Its weights a_i sum up to 1, so the variance of an average is q times that of one measurement, q
    = sum of a_i^2.
    """

    def __init__(self, smoothing: float = SMOOTHING) -> None:
        self._smoothing = smoothing
        self.count = 0
        # Of s = trace(S) and g = |G|^2: s, g, s*s, s*g, g*g; with weights that still sum up to less
        # than 1.
        self._moments: tuple[float, ...] = (0.0,) * 5
        self._squares = 0.0  # the sum of the squares of those weights

    def add(self, parts: float, whole: float, count: int, samples: float) -> None:
        """A step of `count` micro-batches and `samples` samples over all ranks: sum of |h_j|^2 /
        w_j, and |g|^2.

        One that is not finite counts for nothing, and so does one of a single micro-batch.
        """
        if count < 2 or not math.isfinite(parts + whole):
            return
        s = samples / (count - 1) * (parts - whole)
        g = whole - s / samples
        old, new = self._smoothing, 1 - self._smoothing
        self.count += 1
        self._moments = tuple(
            old * m + new * x
            for m, x in zip(self._moments, (s, g, s * s, s * g, g * g), strict=True)
        )
        self._squares = old**2 * self._squares + new**2

    def noise_scale(self) -> Estimate | None:
        """In samples. None while |G|^2 is not known to two standard errors: a ratio to noise is a
        wild number.
        """
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
    """Is accumulation worth it? From the noise scale, taken for the critical batch, and what was
    measured of time.

    A step of k micro-steps takes k * micro_seconds + update_seconds, and the steps to a loss go
    with 1 + noise scale / (k * samples), if the rate is tuned to each batch: their product is least
    at k = best.
    """

    noise: Estimate
    samples: float  # of one micro-step, over all ranks
    micro_seconds: float
    update_seconds: float  # synchronisation and optimizer: once per step
    cost_error: float = 0.0  # of update_seconds / micro_seconds, relative: one standard error

    @property
    def best(self) -> float:
        """The break-even number of micro-steps: more of them take longer to the same loss than they
        save.
        """
        return math.sqrt(self.noise.value / self.samples * self.update_seconds / self.micro_seconds)

    @property
    def error(self) -> float:
        """Of `best`, relative: one standard error."""
        return math.hypot(self.noise.error, self.cost_error) / 2

    def time(self, k: float) -> float:
        """To the same loss, in seconds times a constant."""
        steps = 1 + self.noise.value / (k * self.samples)
        return steps * (k * self.micro_seconds + self.update_seconds)

    def longer(self, k: float) -> float:
        """How much more time `k` micro-steps per step take than the best whole number of them, as a
        ratio less 1.
        """
        return self.time(k) / self.time(whole(self.best)) - 1

    def sentence(self, k: int) -> str:
        """What that means for a run that took `k` micro-steps per step."""
        told = advice(
            self.best, *around(self.best, self.error), self.longer(k), f"the {k} of this run", k
        )
        return (
            f"accumulation: {told} (estimated from a noise scale of {self.noise.value:,.3g} "
            f"samples +- {2 * self.noise.error:.0%}, {_time(self.micro_seconds)} per micro-step of "
            f"{self.samples:.3g} samples, {_time(self.update_seconds)} per synchronisation and "
            "optimizer)"
        )


def around(value: float, error: float) -> tuple[float, float]:
    """Two standard errors, as a factor, to both sides."""
    return value * math.exp(-2 * error), value * math.exp(2 * error)


def whole(micro_steps: float) -> int:
    return max(1, round(micro_steps))


def advice(best: float, least: float, most: float, longer: float, those: str, k: int) -> str:
    """`about 2 micro-steps (2 to 3) would be fastest to the same loss; THOSE take 15% longer`,
    THOSE being `k`.

    Where the estimate's own range holds `k`, nobody knows whether more or fewer would be faster.
    """
    between = f" ({whole(least)} to {whole(most)})" if whole(least) < whole(most) else ""
    fastest = f"about {whole(best)} micro-steps{between} would be fastest to the same loss"
    if whole(best) == 1:
        pays = ", so it does not pay by itself" if whole(most) == 1 else ""
        fastest = f"1 micro-step{between} would be fastest to the same loss{pays}"
    if whole(least) <= k <= whole(most):
        return f"{fastest}; whether it pays is unknown: the estimate cannot tell them from {those}"
    much = "at most 5%" if longer < 0.05 else f"{longer:.0%}"
    cost = f"{much} longer" if longer < 1 else f"{1 + longer:.2g} times as long"
    return f"{fastest}; {those} take{'s' if k == 1 else ''} {cost}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
