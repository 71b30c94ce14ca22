"""How an optimizer's numbers follow the effective batch: one rule a name. Pure: no torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scaled:
    """An optimizer's numbers, moved from the batch at which they were tuned to the one that is trained."""

    lr: float
    args: dict[str, Any]  # of the optimizer, the changed ones replaced
    arithmetic: tuple[str, ...]  # one line for each number that changed
    groups: tuple[dict[str, Any], ...] = ()  # the same for the arguments that differ in a group of parameters


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a rule makes of an optimizer's numbers."""

    lr: float = 1.0
    lr_symbol: str = "1"
    beta_powers: tuple[float, float] = (1.0, 1.0)
    eps: float = 1.0
    weight_decay: float = 1.0


def _linear(kappa: float) -> Factors:
    """SGD, while the batch is small against the noise scale (Goyal et al., 2017, 1706.02677)."""
    return Factors(lr=kappa, lr_symbol="kappa")


def _sqrt(kappa: float) -> Factors:
    """Adam and its relatives, where noise dominates."""
    return Factors(lr=math.sqrt(kappa), lr_symbol="sqrt(kappa)")


def _sde(kappa: float) -> Factors:
    """Malladi et al., 2022, 2205.10287; beta ** kappa in place of their 1 - kappa * (1 - beta), which leaves (0, 1) for
    large kappa."""
    root = math.sqrt(kappa)
    return Factors(
        lr=root,
        lr_symbol="sqrt(kappa)",
        beta_powers=(kappa, kappa),
        eps=1 / root,
        weight_decay=root,
    )


def _halflife(kappa: float) -> Factors:
    """Marek et al., 2025, 2507.07101: for smaller batches."""
    return Factors(beta_powers=(1.0, kappa), weight_decay=kappa)


def _none(kappa: float) -> Factors:
    return Factors()


RULES: dict[str, Callable[[float], Factors]] = {
    "none": _none,
    "linear": _linear,
    "sqrt": _sqrt,
    "sde": _sde,
    "halflife": _halflife,
}
"""Each takes kappa, the ratio of the batch that is trained to the one at which the numbers were tuned. Their names are
also those that config/check.py allows."""


def scale(rule: str, lr: float, args: Mapping[str, Any], batch: int, reference: int | None) -> Scaled:
    """Apply a rule for going from `reference` to `batch` samples per step.

    `args` holds the values in force, defaults included, of those that a rule touches: betas, eps, weight_decay.
    """
    kappa = batch / reference if reference else 1.0
    factors = RULES[rule](kappa)
    if rule == "none" or kappa == 1.0:
        return Scaled(lr, dict(args), ())
    changed = _changes(args, factors)
    ratio = f"kappa = {batch}/{reference} = {kappa:.4g}"
    lines = [f"lr {lr * factors.lr:.4g} = {lr:.4g} * {factors.lr_symbol}, {ratio} ({rule})"]
    for name, value in changed.items():
        lines.append(f"{name} {_short(args[name])} -> {_short(value)} ({rule})")
    return Scaled(lr * factors.lr, {**args, **changed}, tuple(lines))


def _changes(args: Mapping[str, Any], factors: Factors) -> dict[str, Any]:
    """The numbers of `args` that the factors change."""
    new: dict[str, Any] = {}
    if "betas" in args:
        pairs = zip(args["betas"], factors.beta_powers, strict=True)
        new["betas"] = tuple(beta**power for beta, power in pairs)
    if "eps" in args:
        new["eps"] = args["eps"] * factors.eps
    if "weight_decay" in args:
        new["weight_decay"] = args["weight_decay"] * factors.weight_decay
    return {name: value for name, value in new.items() if _differs(value, args[name])}


def _differs(new: Any, old: Any) -> bool:
    return tuple(new) != tuple(old) if isinstance(new, tuple) else bool(new != old)


def _short(value: Any) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in value) + ")" if isinstance(value, tuple | list) else f"{value:.4g}"
