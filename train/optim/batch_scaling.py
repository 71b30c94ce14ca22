"""How an optimizer's numbers follow the effective batch: one rule a name. Pure: no torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Change:
    """From the batch at which an optimizer's numbers were tuned to the one that is trained, in
    samples.
    """

    batch: int
    reference: int
    noise_scale: float | None = None  # optimizer.noise_scale
    # the optimizer divides by the size of the gradient, as Adam does and SGD does not
    is_adaptive: bool = True
    is_decoupled: bool = True  # its weight decay is no part of the gradient

    @property
    def kappa(self) -> float:
        return self.batch / self.reference


@dataclass(frozen=True)
class Row:
    """A number before and after."""

    name: str
    reference: Any
    resolved: Any
    how: str  # `* sqrt(kappa)`; `kept`


@dataclass(frozen=True)
class Scaled:
    """An optimizer's numbers, moved to the batch that is trained."""

    lr: float
    args: dict[str, Any]  # of the optimizer, the changed ones replaced
    rows: tuple[Row, ...] = ()  # all that a rule may change; none where nothing is to be moved
    # the same for the arguments that differ in a group of parameters
    groups: tuple[dict[str, Any], ...] = ()
    ema_power: float = 1.0  # of ema.decay


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a rule makes of an optimizer's numbers.

    The rest follows. A decoupled weight decay is multiplied by kappa / lr: what a sample does to
    the decay, lr * weight_decay / batch, stays (Wang and Aitchison, 2024, 2405.13698). A coupled
    one is part of the loss, and stays. The decay of an average of the weights gets the power kappa:
    as many samples as before halve what it remembers (Busbridge et al., 2023, 2307.13813).
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
    """Malladi et al., 2022, 2205.10287; beta ** kappa in place of their 1 - kappa * (1 - beta),
    which leaves (0, 1) for large kappa.
    """
    kappa, root = change.kappa, math.sqrt(change.kappa)
    return Factors(lr=root, lr_symbol="sqrt(kappa)", beta_powers=(kappa, kappa), eps=1 / root)


def _halflife(change: Change) -> Factors:
    """Marek et al., 2025, 2507.07101: for smaller batches."""
    return Factors(beta_powers=(1.0, change.kappa))


def _noise(change: Change) -> Factors:
    """McCandlish et al., 2018, 1812.06162; for SGD it is AdaScale's gain (Johnson et al., 2020,
    2007.05105).

    linear or sqrt while both batches are small against the noise scale, and a plateau above it.
    """
    assert change.noise_scale is not None  # the config's checks ask for it
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
    """Apply a rule; None: nothing says at which batch the numbers were tuned.

    `args` holds the values in force, defaults included, of those that a rule touches: betas, eps,
    weight_decay.
    """
    if rule == "none" or change is None or change.kappa == 1.0:
        return Scaled(lr, dict(args))
    factors = RULES[rule](change)
    rows = [
        _row("lr", lr, lr * factors.lr, f"* {factors.lr_symbol}"),
        *_rows(args, factors, change),
    ]
    changed = {row.name: row.resolved for row in rows[1:]}
    return Scaled(rows[0].resolved, {**args, **changed}, tuple(rows), ema_power=change.kappa)


def _rows(args: Mapping[str, Any], factors: Factors, change: Change) -> Sequence[Row]:
    """Those of `args` that a rule may change. A rule is about Adam's: what has another form is kept
    (Adafactor's eps is a pair, Adan's betas are three).
    """
    rows = []
    if "betas" in args:
        betas, powers = args["betas"], factors.beta_powers
        resolved = betas
        if (
            isinstance(betas, Sequence)
            and len(betas) == len(powers)
            and all(map(_is_number, betas))
        ):
            resolved = tuple(beta**power for beta, power in zip(betas, powers, strict=True))
            betas = tuple(betas)
        how = "** kappa" if powers[0] == powers[1] else "the second ** kappa"
        rows.append(_row("betas", betas, resolved, how))
    if "eps" in args:
        eps = args["eps"]
        rows.append(
            _row("eps", eps, eps * factors.eps if _is_number(eps) else eps, "/ sqrt(kappa)")
        )
    if _is_number(args.get("weight_decay")):
        decay = args["weight_decay"]
        factor = change.kappa / factors.lr if change.is_decoupled else 1.0
        rows.append(_row("weight_decay", decay, decay * factor, f"* kappa / ({factors.lr_symbol})"))
    return rows


def ema_row(decay: float, power: float) -> Row:
    return _row("ema.decay", decay, decay**power, "** kappa")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _row(name: str, reference: Any, resolved: Any, how: str) -> Row:
    return Row(name, reference, resolved, how if resolved != reference else "kept")
