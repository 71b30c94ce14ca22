"""The norm of a gradient, of all parameters together: a 0-dim tensor on their device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

NARROW = (torch.bfloat16, torch.float16)
EPSILON = 1e-6  # torch's, beside the norm in a clip


def _norm(gradients: list[Tensor]) -> Tensor:
    """That of torch.nn.utils.get_total_norm, bit for bit, where all gradients are on one device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _norm_of_narrow(gradients: list[Tensor]) -> Tensor:
    """In float32. torch's own is a number of bf16, up to 4e-3 off, and the coefficient of a clip
    with it.

    Squares are added up in float64: on a CPU, torch 2.13 adds float32 one after the other (1e-5 off
    at 300,000).
    """
    # which MPS does not have
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    parts = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    norms = torch._foreach_norm(parts, 2.0, wide)
    return torch.linalg.vector_norm(torch.stack(norms)).float()


def clip_gradients(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """torch.nn.utils.clip_grads_with_norm_, bit for bit, of gradients of one type on one device:
    that is not asked.

    A CPU reads the norm for nothing, and multiplies by 1 nothing that is well below the limit. A
    GPU's host would wait.
    """
    if norm.is_cpu and norm.item() + EPSILON < 0.99 * max_norm:
        return
    scale_down(gradients, max_norm, norm)


def scale_down(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """By 1 where the norm is below the limit."""
    torch._foreach_mul_(gradients, (max_norm / (norm + EPSILON)).clamp_(max=1.0))


def _clip_each_type(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Of several types together, torch takes them one by one, and rounds the coefficient to the
    type of each.
    """
    for dtype in {gradient.dtype for gradient in gradients}:
        clip_gradients(
            [gradient for gradient in gradients if gradient.dtype is dtype], max_norm, norm
        )


def clip_for(module: nn.Module) -> Callable[[list[Tensor], float, Tensor], None]:
    """The clip of gradients of the types of this module's parameters."""
    return (
        clip_gradients
        if len({parameter.dtype for parameter in module.parameters()}) == 1
        else _clip_each_type
    )


def norm_for(module: nn.Module) -> Callable[[list[Tensor]], Tensor]:
    """The norm of gradients of the types of this module's parameters."""
    return (
        _norm_of_narrow
        if any(parameter.dtype in NARROW for parameter in module.parameters())
        else _norm
    )
