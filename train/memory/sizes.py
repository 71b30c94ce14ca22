"""Bytes of tensors, each storage counted once."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from train.distributed.sharded import local

GIB = 2**30
MIB = 2**20


def size_text(size: float) -> str:
    """`1.5 GiB`, `12 MiB`: bytes for a reader."""
    if size >= GIB / 10:
        return f"{size / GIB:.3g} GiB"
    return f"{size / MIB:.3g} MiB"


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind the tensors.

    A storage that several tensors share (tied weights, gradient buckets) counts once. Of a sharded
    tensor only this rank's shard counts.
    """
    storages = (local(tensor).untyped_storage() for tensor in tensors)
    # Keyed by the storage object, not by its data pointer: fake tensors have no data pointer.
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def parameters_and_buffers(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors inside nested dicts, lists and tuples, such as an optimizer's state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_of(value)
