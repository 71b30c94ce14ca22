"""The learning rate: a pure function of the step, or of the samples seen. Pure: no torch."""

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """All that the learning rate depends on."""

    peak: float
    name: str  # constant, linear, cosine or wsd (warm-up, stable, decay)
    warmup_steps: int
    total_steps: int
    final_fraction: float
    decay_steps: int | None = None  # of wsd: the last ones, in which the rate falls
    decay_shape: str = "linear"  # of wsd: linear, or 1-sqrt (Haegele et al., 2024, 2405.18392)

    def at(self, k: int, seen: int = 0) -> float:
        """The rate of optimizer step k = 1 .. total_steps, which starts when `seen` samples have
        been trained.

        It rises linearly to the peak, reached at step `warmup_steps`, and falls from the step after
        it (wsd: in the last `decay_steps`) towards final_fraction * peak, which would be reached
        one step after the last: no step is taken at a rate of 0.
        """
        if k <= self.warmup_steps:
            return self.peak * k / self.warmup_steps
        if self.name == "constant":
            return self.peak
        start = self.warmup_steps
        if self.name == "wsd" and self.decay_steps is not None:
            start = max(start, self.total_steps - self.decay_steps)
        progress = (k - 1 - start) / max(1, self.total_steps - start)
        progress = min(1.0, max(0.0, progress))
        if self.name == "cosine":
            falling = (1 + math.cos(math.pi * progress)) / 2
        else:
            root = self.name == "wsd" and self.decay_shape == "1-sqrt"
            falling = 1 - (math.sqrt(progress) if root else progress)
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * falling)


@dataclass(frozen=True, kw_only=True)
class RateInStages(Rate):
    """The rate of steps that are not all as large: a function of the samples seen.

    It is that of a run in steps of one size where that size never changes. The fields of Rate hold
    for the first stage, and count steps.
    """

    over_samples: Rate  # the same horizons in samples; its peak is 1
    # (samples seen, effective batch, peak from there on)
    stages: tuple[tuple[int, int, float], ...]

    def at(self, k: int, seen: int = 0) -> float:
        _, effective, peak = self.stages[
            bisect_right(self.stages, seen, key=lambda stage: stage[0]) - 1
        ]
        shape = self.over_samples
        if seen + effective <= shape.warmup_steps:
            return peak * shape.at(seen + effective)
        # A step's place is where it starts: seen samples lie before it, as k - 1 steps do before
        # step k.
        return peak * shape.at(max(seen, shape.warmup_steps) + 1)
