"""By how much does one gradient differ from another? For `verify`, and for an audit of a running
step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.step import Learner


@dataclass(frozen=True)
class Difference:
    error: float  # |found - reference| / |reference|
    worst: str  # the parameter with the largest error of its own
    largest: str  # the parameter that differs most
    size: float  # |reference|
    apart: float  # |found - reference|


def difference(
    learner: Learner, reference: Sequence[Tensor], found: Sequence[Tensor]
) -> Difference:
    """A gradient per parameter each: what this rank holds of it, on any device. All ranks get the
    same.
    """
    names = [name for name, p in learner.module.named_parameters() if p.requires_grad]
    norms = learner.parallel.norms

    def wide(gradient: Tensor) -> Tensor:
        return gradient.to(learner.device, torch.promote_types(gradient.dtype, torch.float32))

    apart = norms(wide(new) - wide(old) for old, new in zip(reference, found, strict=True))
    size = norms(map(wide, reference))
    relative = [float(d / s) if s else float(d) for d, s in zip(apart, size, strict=True)]
    whole, wrong = float(size.norm()), float(apart.norm())
    return Difference(
        error=wrong / whole if whole else float(wrong > 0),
        worst=names[relative.index(max(relative))],
        largest=names[int(apart.argmax())],
        size=whole,
        apart=wrong,
    )
