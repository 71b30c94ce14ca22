"""How an optimizer's numbers follow the effective batch: one function a rule. Pure: no torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """From the batch at which the numbers were tuned to the one that is trained, in samples."""

    batch: int
    reference: int
    noise_scale: float | None = None
    """optimizer.noise_scale"""
    is_adaptive: bool = True
    """The optimizer divides by the size of the gradient, as Adam does and SGD does not."""
    is_decoupled: bool = True
    """Its weight decay is no part of the gradient."""

    @property
    def kappa(self) -> float:
        return self.batch / self.reference


@dataclass(frozen=True)
class Row:
    """A number before and after."""

    name: str
    reference: Any
    resolved: Any
    how: str
    """`* sqrt(kappa)`; `kept`"""


@dataclass(frozen=True)
class Scaled:
    """An optimizer's numbers, moved to the batch that is trained."""

    lr: float
    args: dict[str, Any]
    """Of the optimizer, the changed ones replaced."""
    rows: tuple[Row, ...] = ()
    """All that a rule may change; none where nothing is to be moved."""
    groups: tuple[dict[str, Any], ...] = ()
    """The same for the arguments that differ in a group of parameters."""
    ema_power: float = 1.0
    """Of ema.decay."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """By what a rule multiplies an optimizer's numbers, or which power of them it takes.

    Two numbers follow in the same way under all rules. A decoupled weight decay is multiplied by
    kappa / lr: what a sample does to the decay, lr * weight_decay / batch, stays (Wang and
    Aitchison, 2024, 2405.13698). A coupled one is part of the loss, and stays. The decay of an
    average of the weights gets the power kappa: as many samples as before halve what it remembers
    (Busbridge et al., 2023, 2307.13813).
    """

    lr: float = 1.0
    lr_symbol: str = "1"
    beta_powers: tuple[float, float] = (1.0, 1.0)
    eps: float = 1.0


def _linear(change: Change) -> Factors:
    """SGD, while the batch is small against the noise scale (Goyal et al., 2017, 1706.02677)."""
    return Factors(lr=change.kappa, lr_symbol="kappa")


def _sqrt(change: Change) -> Factors:
    """Adam and its relatives, where noise dominates."""
    return Factors(lr=math.sqrt(change.kappa), lr_symbol="sqrt(kappa)")


def _sde(change: Change) -> Factors:
    """Malladi et al., 2022, 2205.10287.

    beta ** kappa in place of their 1 - kappa * (1 - beta), which leaves (0, 1) for large kappa.
    """
    kappa = change.kappa
    root = math.sqrt(kappa)
    return Factors(lr=root, lr_symbol="sqrt(kappa)", beta_powers=(kappa, kappa), eps=1 / root)


def _halflife(change: Change) -> Factors:
    """Marek et al., 2025, 2507.07101: for smaller batches."""
    return Factors(beta_powers=(1.0, change.kappa))


def _noise(change: Change) -> Factors:
    """McCandlish et al., 2018, 1812.06162.

    linear (for Adam: sqrt) while both batches are small against the noise scale, and a plateau
    above it. For SGD it is AdaScale's gain (Johnson et al., 2020, 2007.05105).
    """
    assert change.noise_scale is not None  # The config's checks ask for it.
    # The best rate at a batch B goes as 1 / (1 + noise_scale / B). This is the ratio of two such
    # rates, so the largest useful rate, which nobody knows, cancels.
    gain = (1 + change.noise_scale / change.reference) / (1 + change.noise_scale / change.batch)
    if not change.is_adaptive:
        return Factors(lr=gain, lr_symbol="gain")
    return Factors(lr=math.sqrt(gain), lr_symbol="sqrt(gain)")


def _none(change: Change) -> Factors:
    return Factors()


RULES: dict[str, Callable[[Change], Factors]] = {
    "none": _none,
    "linear": _linear,
    "sqrt": _sqrt,
    "sde": _sde,
    "halflife": _halflife,
    "noise": _noise,
}
"""Their names are also those that optimizer.lr_scaling allows (config/recipe.py)."""


def scale(rule: str, lr: float, args: Mapping[str, Any], change: Change | None) -> Scaled:
    """Apply a rule. No change: the batch at which the numbers were tuned is not stated.

    `args` holds the values in force, defaults included, of those that a rule touches: betas, eps,
    weight_decay.
    """
    if rule == "none" or change is None or change.kappa == 1.0:
        return Scaled(lr, dict(args))
    factors = RULES[rule](change)
    scaled_lr = lr * factors.lr
    rows = _rows(args, factors, change)
    # Taken from the rows that are printed: what the screen shows and what is trained are one
    # number.
    changed = {row.name: row.resolved for row in rows}
    return Scaled(
        lr=scaled_lr,
        args={**args, **changed},
        rows=(_row("lr", lr, scaled_lr, f"* {factors.lr_symbol}"), *rows),
        ema_power=change.kappa,
    )


def _rows(args: Mapping[str, Any], factors: Factors, change: Change) -> Sequence[Row]:
    """Those of `args` that a rule may change.

    A rule is about Adam's arguments: what has another form is kept (Adafactor's eps is a pair,
    Adan's betas are three).
    """
    rows = []
    if "betas" in args:
        rows.append(_betas_row(args["betas"], factors.beta_powers))
    if "eps" in args:
        eps = args["eps"]
        scaled_eps = eps * factors.eps if _is_number(eps) else eps
        rows.append(_row("eps", eps, scaled_eps, "/ sqrt(kappa)"))
    if _is_number(args.get("weight_decay")):
        decay = args["weight_decay"]
        # lr * weight_decay / batch stays: the rate has been multiplied by factors.lr, the batch by
        # kappa.
        factor = change.kappa / factors.lr if change.is_decoupled else 1.0
        rows.append(_row("weight_decay", decay, decay * factor, f"* kappa / ({factors.lr_symbol})"))
    return rows


def _betas_row(betas: Any, powers: tuple[float, float]) -> Row:
    how = "** kappa" if powers[0] == powers[1] else "the second ** kappa"
    is_pair = isinstance(betas, Sequence) and len(betas) == len(powers)
    if not is_pair or not all(map(_is_number, betas)):
        return _row("betas", betas, betas, how)
    # Beta is the share that one step keeps. A step of kappa times as many samples has to keep what
    # kappa steps did.
    resolved = tuple(beta**power for beta, power in zip(betas, powers, strict=True))
    return _row("betas", tuple(betas), resolved, how)


def ema_row(decay: float, power: float) -> Row:
    return _row("ema.decay", decay, decay**power, "** kappa")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _row(name: str, reference: Any, resolved: Any, how: str) -> Row:
    return Row(
        name=name,
        reference=reference,
        resolved=resolved,
        # A rule may leave a number where it is (a power of 1, no weight decay): the screen then
        # must not name a change.
        how=how if resolved != reference else "kept",
    )
