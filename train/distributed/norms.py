"""The norm of a gradient, of all parameters together: a 0-dim tensor on their device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)
EPSILON = 1e-6  # torch's, beside the norm in a clip


def _norm(gradients: list[Tensor]) -> Tensor:
    """As torch.nn.utils.get_total_norm, bit for bit, for gradients on one device."""
    # torch's function sorts the gradients by device and type at each call.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _norm_of_narrow(gradients: list[Tensor]) -> Tensor:
    """In float32. torch's own is a number of bf16, up to 4e-3 off, and the coefficient of a clip
    with it.
    """
    # Squares are added up in float64: on a CPU, torch 2.13 adds float32 one after the other (1e-5
    # off at 300,000).
    wide = torch.float64
    if gradients[0].device.type == "mps":  # it has no float64
        wide = torch.float32
    # A complex gradient as its real and imaginary parts, which have the same norm: it may stand
    # beside narrow ones.
    parts = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    norms = torch._foreach_norm(parts, 2.0, wide)
    return torch.linalg.vector_norm(torch.stack(norms)).float()


def clip_gradients(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """As torch.nn.utils.clip_grads_with_norm_, bit for bit, for gradients of one type and device.

    On a CPU reading the norm costs nothing, so gradients well below the limit are not multiplied
    by 1. On a GPU it would make the host wait.
    """
    # With torch's 1e-6: at a limit below 1e-4 it alone can make the coefficient less than 1.
    if norm.is_cpu and norm.item() + EPSILON < 0.99 * max_norm:
        return
    scale_down(gradients, max_norm, norm)


def scale_down(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Multiply by max_norm / norm, or by 1 where the norm is below the limit."""
    torch._foreach_mul_(gradients, (max_norm / (norm + EPSILON)).clamp_(max=1.0))


def _clip_each_type(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """As torch does for several types: one after the other, the coefficient rounded to each."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for same in by_dtype.values():
        clip_gradients(same, max_norm, norm)


def clip_for(module: nn.Module) -> Callable[[list[Tensor], float, Tensor], None]:
    """The clip of gradients of the types of this module's parameters."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return clip_gradients if len(dtypes) == 1 else _clip_each_type


def norm_for(module: nn.Module) -> Callable[[list[Tensor]], Tensor]:
    """The norm of gradients of the types of this module's parameters."""
    is_narrow = any(parameter.dtype in NARROW for parameter in module.parameters())
    return _norm_of_narrow if is_narrow else _norm
