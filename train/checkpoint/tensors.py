"""What safetensors can hold: tensors of most types, no two of which share memory."""

from collections.abc import Mapping

import torch
from torch import Tensor


def known(tensor: Tensor) -> Tensor:
    """The tensor as a file can hold it. safetensors 0.8 has no complex128: those as pairs, one
    dimension longer.
    """
    plain = tensor.detach()
    if plain.dtype == torch.complex128:
        plain = torch.view_as_real(plain.resolve_conj())
    return plain.contiguous()


def restored(stored: Tensor, wanted: Tensor) -> Tensor:
    """What `known` was given; `wanted`: a tensor of the type that it had."""
    if wanted.dtype == torch.complex128 and not stored.is_complex():
        return torch.view_as_complex(stored)
    return stored


def alone(tensor: Tensor) -> Tensor:
    """A copy of a piece of something larger, all of whose memory a file would else hold."""
    is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if is_whole else tensor.clone()


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied ones as copies, and those that are pieces of something larger."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found
