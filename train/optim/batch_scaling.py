"""How an optimizer's numbers follow the effective batch: one rule a name. Pure: no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scaled:
    """An optimizer's numbers, moved from the batch at which they were tuned to the one that is trained."""

    lr: float
    args: dict[str, Any]  # of the optimizer, the changed ones replaced
    arithmetic: tuple[str, ...]  # one line for each number that changed
    groups: tuple[dict[str, Any], ...] = ()  # the same for the arguments that differ in a group of parameters


def scale(rule: str, lr: float, args: Mapping[str, Any], batch: int, reference: int | None) -> Scaled:
    """Apply a rule for going from `reference` to `batch` samples per step; kappa is their ratio.

    linear    lr * kappa: SGD while the batch is small against the noise scale (Goyal et al., 2017, 1706.02677)
    sqrt      lr * sqrt(kappa): Adam and its relatives, where noise dominates
    sde       sqrt, and betas ** kappa, eps / sqrt(kappa), weight_decay * sqrt(kappa) (Malladi et al., 2022, 2205.10287;
              beta ** kappa in place of their 1 - kappa * (1 - beta), which leaves (0, 1) for large kappa)
    halflife  lr kept, beta2 ** kappa, weight_decay * kappa (Marek et al., 2025, 2507.07101: for smaller batches)

    `args` holds the values in force, defaults included, of those that a rule touches.
    """
    kappa = batch / reference if reference else 1.0
    root = math.sqrt(kappa)
    factor, symbol = {
        "none": (1.0, "1"),
        "linear": (kappa, "kappa"),
        "sqrt": (root, "sqrt(kappa)"),
        "sde": (root, "sqrt(kappa)"),
        "halflife": (1.0, "1"),
    }[rule]
    if rule == "none" or kappa == 1.0:
        return Scaled(lr, dict(args), ())
    changed: dict[str, Any] = {}
    if rule == "sde":
        changed = _changes(args, beta_powers=(kappa, kappa), eps_factor=1 / root, decay_factor=root)
    elif rule == "halflife":
        changed = _changes(args, beta_powers=(1.0, kappa), eps_factor=1.0, decay_factor=kappa)
    lines = [f"lr {lr * factor:.4g} = {lr:.4g} * {symbol}, kappa = {batch}/{reference} = {kappa:.4g} ({rule})"]
    lines += [f"{name} {_short(args[name])} -> {_short(value)} ({rule})" for name, value in changed.items()]
    return Scaled(lr * factor, {**args, **changed}, tuple(lines))


def _changes(
    args: Mapping[str, Any], beta_powers: tuple[float, float], eps_factor: float, decay_factor: float
) -> dict[str, Any]:
    new: dict[str, Any] = {}
    if "betas" in args:
        new["betas"] = tuple(beta**power for beta, power in zip(args["betas"], beta_powers, strict=True))
    if "eps" in args:
        new["eps"] = args["eps"] * eps_factor
    if "weight_decay" in args:
        new["weight_decay"] = args["weight_decay"] * decay_factor
    return {name: value for name, value in new.items() if _differs(value, args[name])}


def _differs(new: Any, old: Any) -> bool:
    return tuple(new) != tuple(old) if isinstance(new, tuple) else bool(new != old)


def _short(value: Any) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in value) + ")" if isinstance(value, tuple | list) else f"{value:.4g}"
