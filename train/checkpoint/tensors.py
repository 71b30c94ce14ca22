"""What safetensors can hold: tensors of most types, no two of which share memory."""

from collections.abc import Mapping

import torch
from torch import Tensor


def storable(tensor: Tensor) -> Tensor:
    """The tensor as a file can hold it, detached and contiguous.

    safetensors 0.8 has no complex128: those become pairs of numbers, one dimension longer.
    """
    plain = tensor.detach()
    if plain.dtype == torch.complex128:
        plain = torch.view_as_real(plain.resolve_conj())
    return plain.contiguous()


def from_storable(stored: Tensor, like: Tensor) -> Tensor:
    """What `storable` was called with; `like`: a tensor of the type that it had."""
    if like.dtype == torch.complex128 and not stored.is_complex():
        return torch.view_as_complex(stored)
    return stored


def compact(tensor: Tensor) -> Tensor:
    """A copy of a view into something larger, all of whose memory a file would else hold."""
    fills_storage = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if fills_storage else tensor.clone()


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share memory with an earlier one."""
    storages: set[int] = set()
    separated = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        separated[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separated
