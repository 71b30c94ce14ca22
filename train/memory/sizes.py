"""Bytes of tensors that share storages."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from train.distributed.sharded import local

GIB = 2**30


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the storages behind the tensors; one that several share (tied weights, buckets of
    gradients) counts once.

    Of a tensor that is divided among the ranks: what this rank holds.
    """
    storages = (local(tensor).untyped_storage() for tensor in tensors)
    # By the storage itself, not by its memory: tensors without values have none.
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def tensors_of(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_of(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_of(value)
