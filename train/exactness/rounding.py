"""Is a difference rounding? No tolerance knows: numbers that cancel lose digits, and a model may
choose its types.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from train.distributed.sharded import local
from train.exactness.reference_gradient import loss_and_gradient
from train.exactness.trial import Outcome, Trial

EXPLAINED = 32.0
"""Differences up to so many times what one rounding of each weight makes are rounding: of a batch
of another size the sums run in another order, in each of some tens of layers.
"""

OF_TYPE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest relative difference that needs no further explanation where something is computed in
that type.
"""

NARROWER = 0.25
"""The same, for types of 8 bits."""


def is_rounding(trial: Trial, apart: float, whole: Outcome) -> bool:
    """Whether rounding explains a difference from `whole`: looked into only where there is one."""
    return explains(trial, apart, lambda: trial.apart(trial.run(trial.all_at_once(), 1), whole))


def explains(trial: Trial, apart: float, measured_again: Callable[[], float]) -> bool:
    """Whether rounding makes such a difference; `measured_again`: the difference that the weights
    of now make.

    A model may compute in a narrower type inside; and numbers that almost cancel (a confident
    softmax of large logits) lose digits in any type: so many as they lose when each weight is
    rounded once more.
    """
    narrowest = _narrowest(trial)
    if torch.finfo(narrowest).eps > torch.finfo(trial.learner.dtype).eps:
        trial.narrower_inside = str(narrowest).removeprefix("torch.")
    if apart <= OF_TYPE.get(narrowest, NARROWER):
        return True
    with _rounded_weights(trial, torch.finfo(narrowest).eps):
        return apart <= EXPLAINED * measured_again()


@contextmanager
def _rounded_weights(trial: Trial, eps: float) -> Iterator[None]:
    parameters = [local(p) for p in trial.learner.parameters]
    kept = [p.detach().clone() for p in parameters]
    rounded = rounded_once_more(eps)
    try:
        with torch.no_grad():
            for p in parameters:
                p.copy_(rounded(p))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def rounded_once_more(eps: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that makes each number a little larger or smaller, by as much as one rounding may
    move it.
    """
    generator = torch.Generator().manual_seed(seed)

    def rounded(value: Tensor) -> Tensor:
        if not value.is_floating_point() and not value.is_complex():
            return value.clone()
        signs: Any = torch.rand(value.shape, generator=generator).round() * 2 - 1
        return (value * (1 + eps * signs.to(value.device))).to(value.dtype)

    return rounded


def _narrowest(trial: Trial) -> torch.dtype:
    """The narrowest floating-point type that anything is computed in."""
    trial.start.restore()
    trial.generators.seed(0)
    with Watching() as watching, torch.enable_grad():
        loss_and_gradient(trial.learner, trial.whole)
    return watching.narrowest


class Watching(TorchDispatchMode):
    """Sees the results of all operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.narrowest = torch.float64

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            self._see(value)
        return result

    def _see(self, value: Any) -> None:
        if not isinstance(value, Tensor) or value.numel() < 2:
            return
        if value.is_floating_point() or value.is_complex():
            real = value.dtype.to_real()
            if torch.finfo(real).eps > torch.finfo(self.narrowest).eps:
                self.narrowest = real
