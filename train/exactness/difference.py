"""By how much does one gradient differ from another? For `verify`, and for the audit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.step import Learner


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """Over all parameters, in the 2-norm."""

    error: float  # |gradient - reference| / |reference|
    absolute: float  # |gradient - reference|
    worst_parameter: str  # with the largest error relative to its own norm
    largest_parameter: str  # with the largest absolute difference


def gradient_difference(
    learner: Learner, reference: Sequence[Tensor], gradient: Sequence[Tensor]
) -> GradientDifference:
    """Each: what this rank holds of the gradient of each trained parameter, on any device.

    All ranks get the same.
    """
    names = [name for name, p in learner.module.named_parameters() if p.requires_grad]
    norms = learner.parallel.norms

    def wide(tensor: Tensor) -> Tensor:
        # Wider than bf16 and float16, whose difference of two near numbers keeps hardly a digit.
        return tensor.to(learner.device, torch.promote_types(tensor.dtype, torch.float32))

    # A generator: one pair at a time is on the device.
    pairs = zip(reference, gradient, strict=True)
    differences = norms(wide(actual) - wide(expected) for expected, actual in pairs)
    scales = norms(map(wide, reference))
    relative = []
    for difference, scale in zip(differences.tolist(), scales.tolist(), strict=True):
        relative.append(difference / scale if scale else difference)
    # From norms per parameter: under FSDP2 each rank holds a part, and only norms are joined.
    absolute = float(differences.norm())
    reference_norm = float(scales.norm())
    if reference_norm:
        error = absolute / reference_norm
    else:
        # A gradient of nothing: any other one is wrong as a whole.
        error = float(absolute > 0)
    return GradientDifference(
        error=error,
        absolute=absolute,
        worst_parameter=names[relative.index(max(relative))],
        largest_parameter=names[int(differences.argmax())],
    )
