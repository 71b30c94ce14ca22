"""Bytes of all live tensors after each operation: what an allocator counts, with or without one.

A storage counts once, however many tensors are views of it, from the operation that made it until
nothing refers to it. What an operation allocates only while it runs, such as the workspace of a
convolution, is not seen, except where `extra_bytes` knows it.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS = "weights"  # buffers too
GRADIENTS = "gradients"
OPTIMIZER = "optimizer"
SAMPLES = "samples"
ACTIVATIONS = "activations"  # all else that a step makes
KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER, SAMPLES, ACTIVATIONS)
"""What a storage holds."""

UNCOUNTED = ""
"""The kind of a storage from before, which nobody has named: it counts nowhere."""


class LiveStorages(TorchDispatchMode):
    """Counts while it is entered, on this thread."""

    def __init__(
        self,
        block: int = 1,
        limit: int | None = None,
        extra_bytes: Callable[[Any, Any, Any], Sequence[int]] = lambda *_: (),
    ) -> None:
        """`block`: an allocator's granularity; each storage is rounded up to a multiple of it.

        `limit`: bytes beyond which an operation raises torch.OutOfMemoryError.
        `extra_bytes(operation, arguments, outputs)`: at some moments while the operation runs, how
        many bytes more are in use than when it is done. They are only recorded.
        """
        super().__init__()
        self.peak = 0
        self.makes_up_numbers = False
        """Whether reading a number from a tensor without values gives 1, in place of an error."""
        self._now = dict.fromkeys(KINDS, 0)
        self._total = 0
        self._block = block
        self._limit = limit
        self._extra_bytes = extra_bytes
        self._kinds: dict[int, tuple[str, int]] = {}  # (kind, bytes) by storage
        self._references: dict[int, weakref.ref[Any]] = {}  # by storage
        self._names: list[str] | None = None  # of recorded operations
        self._live: list[list[int]] = []

    def count_as(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these as `kind`, whether or not they were counted before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            old_kind, size = self._kinds.get(storage._cdata, (UNCOUNTED, 0))
            if old_kind == UNCOUNTED:
                self._count(storage, kind)
            elif old_kind != kind:
                self._now[old_kind] -= size
                self._now[kind] += size
                self._kinds[storage._cdata] = (kind, size)

    def record(self) -> None:
        """Record every operation from here on."""
        self._names = []
        self._live = []

    def recorded(self) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """(names of the operations since `record`, live bytes of each of KINDS after each)"""
        names = self._names
        self._names = None
        assert names is not None
        return names, self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.makes_up_numbers and func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        for storage in self._new_storages((args, kwargs)):
            # Seen at the inputs first: else an output that is a view of an older tensor would count
            # as new.
            self._watch(storage, UNCOUNTED, 0)
        outputs = func(*args, **(kwargs or {}))
        for storage in self._new_storages(outputs):
            self._count(storage, ACTIVATIONS)
        if self._names is not None:
            for extra in (0, *self._extra_bytes(func, args, outputs)):
                live = self._now | {ACTIVATIONS: self._now[ACTIVATIONS] + extra}
                self._names.append(func.name())
                self._live.append(list(live.values()))
        return outputs

    def _new_storages(self, values: Any) -> Iterator[Any]:
        """Those not seen before.

        Lazy: the caller registers each before the next one is compared, so two tensors on one
        storage give it once.
        """
        for value in tree_leaves(values):
            if not isinstance(value, Tensor):
                continue
            storage = _storage(value)
            if storage is not None and storage._cdata not in self._kinds:
                yield storage

    def _count(self, storage: Any, kind: str) -> None:
        size = math.ceil(storage.nbytes() / self._block) * self._block
        # Before it is counted: this storage is freed on the way out, and nothing watches it.
        if self._limit is not None and self._total + size > self._limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {size:,} bytes more than the {self._total:,} that are held would "
                f"pass the limit of {self._limit:,}"
            )
        self._watch(storage, kind, size)
        self._now[kind] += size
        self._total += size
        self.peak = max(self.peak, self._total)

    def _watch(self, storage: Any, kind: str, size: int) -> None:
        key = storage._cdata
        self._kinds[key] = (kind, size)
        # A weak reference, so that the count follows torch's own lifetimes and prolongs none.
        self._references[key] = weakref.ref(storage, partial(self._freed, key))

    def _freed(self, key: int, _: object) -> None:
        kind, size = self._kinds.pop(key)
        del self._references[key]
        if kind != UNCOUNTED:
            self._now[kind] -= size
            self._total -= size


def _storage(tensor: Tensor) -> Any:
    """None for a sparse tensor, which has several."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _one(dtype: torch.dtype) -> Any:
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def onednn_bytes(operation: Any, arguments: Any, outputs: Any) -> Sequence[int]:
    """What oneDNN has in use on a CPU while it computes the gradients of a convolution.

    They are computed in oneDNN's own layout, from a copy in that layout: as torch 2.13 does it for
    most shapes, first the gradient of the inputs twice beside the copy, then that of the weight.
    """
    if operation is not torch.ops.aten.convolution_backward.default:
        return ()
    gradient, inputs, weight = arguments[:3]
    if not _uses_onednn(inputs, weight):
        return ()
    copied = _bytes_of(gradient)
    of_inputs = _bytes_of(outputs[0])
    of_weight = _bytes_of(outputs[1])
    return (copied + of_inputs - of_weight, copied + of_weight)


def _bytes_of(tensor: Tensor | None) -> int:
    """0 for a gradient that is not asked for."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _uses_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """A single small image is computed without it (ConvParams::use_mkldnn in torch)."""
    return inputs.shape[0] > 1 or inputs.numel() > 20480 or min(weight.shape[2:]) > 3
