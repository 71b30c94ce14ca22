"""Is a difference explained by rounding? No fixed tolerance can tell.

Numbers that cancel lose digits in any type, and a model may compute in a narrower type inside.
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

ROUNDINGS_EXPLAINED = 32.0
"""A difference up to so many times that of one rounding of each weight counts as rounding.

In a batch of another size the sums run in another order, in each of some tens of layers.
"""

DTYPE_TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""The largest relative difference that needs no further explanation, by the narrowest dtype."""

TOLERANCE_OF_8_BITS = 0.25
"""The same, for types of 8 bits."""


def tolerance_of(dtype: torch.dtype) -> float:
    return DTYPE_TOLERANCE.get(dtype, TOLERANCE_OF_8_BITS)


def is_rounding(trial: Trial, difference: float, full: Outcome) -> bool:
    """Whether rounding explains a difference from the full batch, run at once."""
    return rounding_explains(
        trial, difference, lambda: trial.difference(trial.run(trial.all_at_once(), 1), full)
    )


def rounding_explains(
    trial: Trial, difference: float, measure_perturbed: Callable[[], float]
) -> bool:
    """Whether rounding makes such a difference.

    `measure_perturbed` gives the difference from the full batch with the weights as they are then:
    each rounded once more. Where numbers almost cancel (a confident softmax of large logits), they
    lose as many digits by that as by another order of summation.
    """
    # A model may cast to half precision inside, whatever its weights are.
    narrowest = _narrowest_dtype(trial)
    if torch.finfo(narrowest).eps > torch.finfo(trial.learner.dtype).eps:
        trial.narrower_inside = str(narrowest).removeprefix("torch.")
    if difference <= tolerance_of(narrowest):
        return True
    with _rounded_weights(trial, torch.finfo(narrowest).eps):
        return difference <= ROUNDINGS_EXPLAINED * measure_perturbed()


@contextmanager
def _rounded_weights(trial: Trial, eps: float) -> Iterator[None]:
    # The shards of this rank under FSDP2: a DTensor is written to by its local part.
    parameters = [local(p) for p in trial.learner.parameters]
    saved = [p.detach().clone() for p in parameters]
    round_once = rounded_once_more(eps)
    try:
        with torch.no_grad():
            for p in parameters:
                p.copy_(round_once(p))
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, saved, strict=True):
                # Copied back, not rounded back: the second rounding would not undo the first.
                p.copy_(value)


def rounded_once_more(eps: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that moves each number by as much as one rounding may, up or down at random."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(value: Tensor) -> Tensor:
        if not value.is_floating_point() and not value.is_complex():
            return value.clone()
        # Drawn on the CPU by a generator of its own: the same on every device, and no draw of the
        # run moves.
        signs: Any = torch.rand(value.shape, generator=generator).round() * 2 - 1
        return (value * (1 + eps * signs.to(value.device))).to(value.dtype)

    return rounded


def _narrowest_dtype(trial: Trial) -> torch.dtype:
    """Of all that forward and backward pass compute."""
    trial.start.restore()
    trial.generators.seed(0)
    with NarrowestDtype() as recorded, torch.enable_grad():
        loss_and_gradient(trial.learner, trial.full_batch)
    return recorded.dtype


class NarrowestDtype(TorchDispatchMode):
    """Records the narrowest floating-point type of the results of all operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else [result]
        for value in values:
            self._record(value)
        return result

    def _record(self, value: Any) -> None:
        # A single number may be a scale or a counter: nothing of the data is computed in its type.
        if not isinstance(value, Tensor) or value.numel() < 2:
            return
        if value.is_floating_point() or value.is_complex():
            real = value.dtype.to_real()
            if torch.finfo(real).eps > torch.finfo(self.dtype).eps:
                self.dtype = real
