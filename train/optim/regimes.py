"""Where a scaling rule holds: what it is for, and how far it is from the noise scale's. Pure."""

import math
from collections.abc import Iterator
from dataclasses import replace

from train.optim.batch_scaling import RULES, Change

FAR = 1.25
"""A rate that differs by a larger factor, to either side, is reported."""
NOISY = ("linear", "sqrt", "sde")
"""Rules for batches that are small against the noise scale."""


def hints(rule: str, change: Change | None) -> Iterator[str]:
    """What speaks against a rule before the first step."""
    if change is None or change.kappa == 1.0:
        return
    kappa = f"kappa = {change.kappa:.4g}"
    if rule == "linear" and change.is_adaptive:
        why = "linear is a rule for SGD; an optimizer like Adam moves with the root"
        yield f"{why}. Set: optimizer.lr_scaling=sqrt"
    if rule in ("sqrt", "sde", "halflife") and not change.is_adaptive:
        yield f"{rule} is a rule for optimizers like Adam. Set: optimizer.lr_scaling=linear"
    if rule in ("sqrt", "sde") and change.is_adaptive and change.kappa < 1 / 8:
        why = f"{rule} falls too fast towards small batches ({kappa})"
        yield f"{why}. Set: optimizer.lr_scaling=halflife"
    if rule == "halflife" and change.kappa > 1:
        yield f"halflife is a rule for smaller batches ({kappa}). Set: optimizer.lr_scaling=sqrt"
    if change.noise_scale is not None:
        yield from against_noise(rule, change, "the stated")


def against_noise(rule: str, change: Change | None, which: str) -> Iterator[str]:
    """Where a rule's rate differs from that by the noise scale of `change`; `which`: its source."""
    if change is None or change.noise_scale is None or rule not in NOISY or change.kappa == 1.0:
        return
    # Both factors start from the same reference rate, which cancels.
    ratio = RULES[rule](change).lr / RULES["noise"](change).lr
    if 1 / FAR <= ratio <= FAR:
        return
    # Rounded once, so that the sentence and the command in it state the same number.
    scale = float(f"{change.noise_scale:.3g}")
    share = max(change.batch, change.reference) / change.noise_scale
    yield (
        f"{rule} holds while batches are small against the noise scale. At {which} {scale:,.0f} "
        f"samples the larger batch is {share:.2g} times that, and the rate {ratio:.3g} times what "
        f"the noise scale says. Set: optimizer.lr_scaling=noise optimizer.noise_scale={scale:g}"
    )


def with_noise_scale(change: Change | None, noise_scale: float) -> Change | None:
    """None where there is no change, or no measurement that makes sense."""
    if change is None or not (math.isfinite(noise_scale) and noise_scale > 0):
        return None
    return replace(change, noise_scale=noise_scale)
