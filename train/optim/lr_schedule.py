"""The learning rate: a pure function of the step, or of the samples seen. Pure: no torch."""

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """All that the learning rate depends on."""

    peak: float
    name: str
    """constant, linear, cosine or wsd (warm-up, stable, decay)"""
    warmup_steps: int
    total_steps: int
    final_fraction: float
    decay_steps: int | None = None
    """Of wsd: the last ones, in which the rate falls."""
    decay_shape: str = "linear"
    """Of wsd: linear, or 1-sqrt (Haegele et al., 2024, 2405.18392)."""

    def at(self, k: int, seen: int = 0) -> float:
        """The rate of optimizer step k = 1 .. total_steps, which starts after `seen` samples.

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
        # 0 in the first step of the fall, 1 only one step after the last. Where no step is left to
        # fall in, there is nothing to divide by.
        progress = (k - 1 - start) / max(1, self.total_steps - start)
        # Below 0 while the rate of wsd is stable: it stays at the peak until the decay begins.
        progress = min(1.0, max(0.0, progress))
        # How much of the fall is still ahead, from 1 to 0.
        if self.name == "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
        elif self.name == "wsd" and self.decay_shape == "1-sqrt":
            remaining = 1 - math.sqrt(progress)
        else:
            remaining = 1 - progress
        return self.peak * (self.final_fraction + (1 - self.final_fraction) * remaining)


@dataclass(frozen=True, kw_only=True)
class RateInStages(Rate):
    """The rate of steps that differ in size: a function of the samples seen.

    It is that of a run in steps of one size where that size never changes. The fields of Rate hold
    for the first stage, and count steps.
    """

    over_samples: Rate
    """The same horizons in samples; its peak is 1."""
    stages: tuple[tuple[int, int, float], ...]
    """(samples seen, effective batch, peak from there on)"""

    def at(self, k: int, seen: int = 0) -> float:
        # To the right of an equal start: a step that begins exactly there belongs to the new stage.
        index = bisect_right(self.stages, seen, key=lambda stage: stage[0]) - 1
        _, effective, peak = self.stages[index]
        shape = self.over_samples
        # In the warm-up a step counts with its own samples, as step k counts as k in Rate: with one
        # size, seen + effective is k * effective.
        if seen + effective <= shape.warmup_steps:
            return peak * shape.at(seen + effective)
        # The position of a step is where it starts: `seen` samples lie before it, as k - 1 steps
        # lie before step k.
        return peak * shape.at(max(seen, shape.warmup_steps) + 1)
