"""The bytes of all tensors that are alive, after each operation: what an allocator counts, without
one too.

A storage counts once, however many tensors are views of it, from the operation that made it until
nothing holds it. Not seen is what an operation needs inside itself for a moment, such as the
workspace of a convolution, except where `inside` knows it.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMIZER, SAMPLES, ACTIVATIONS = (
    "weights",
    "gradients",
    "optimizer",
    "samples",
    "activations",
)
KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER, SAMPLES, ACTIVATIONS)
"""What a storage holds. Buffers are among the weights; activations are all that a step makes
besides.
"""

OUTSIDE = ""
"""Of a storage that was there before, and that nobody has named: it counts nowhere."""


class LiveStorages(TorchDispatchMode):
    """Counts while it is entered, on this thread."""

    def __init__(
        self,
        block: int = 1,
        limit: int | None = None,
        inside: Callable[[Any, Any, Any], Sequence[int]] = lambda *_: (),
    ) -> None:
        """`block`: an allocator's granularity, to a multiple of which each storage is rounded up.

        `limit`: bytes beyond which an operation raises torch.OutOfMemoryError. `inside(operation,
        arguments, made)`: at some moments of it, how many bytes more it has in use than when it is
        done. They are only written down.
        """
        super().__init__()
        self.peak = 0
        self.answers = False
        """Whether a number that a tensor without values is asked for is made up: 1."""
        self._now = dict.fromkeys(KINDS, 0)
        self._total = 0
        self._block = block
        self._limit = limit
        self._inside = inside
        self._kinds: dict[int, tuple[str, int]] = {}  # and bytes, by the address of the storage
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._names: list[str] | None = None
        self._live: list[list[int]] = []

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these as `kind`, whether or not they were counted before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            was, size = self._kinds.get(storage._cdata, (None, 0))
            if was is None or was == OUTSIDE:
                self._count(storage, kind)
            elif was != kind:
                self._now[was] -= size
                self._now[kind] += size
                self._kinds[storage._cdata] = (kind, size)

    def record(self) -> None:
        """From here on every operation is written down."""
        self._names, self._live = [], []

    def recorded(self) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
        """The names of the operations since `record`, and the live bytes of each of KINDS after
        each.
        """
        names, self._names = self._names, None
        assert names is not None
        return names, self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.answers and func is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                storage = _storage(given)
                if storage is not None and storage._cdata not in self._kinds:
                    self._watch(storage, OUTSIDE, 0)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = _storage(tensor)
                if storage is not None and storage._cdata not in self._kinds:
                    self._count(storage, ACTIVATIONS)
        if self._names is not None:
            for more in (0, *self._inside(func, args, made)):
                self._names.append(func.name())
                self._live.append(
                    list((self._now | {ACTIVATIONS: self._now[ACTIVATIONS] + more}).values())
                )
        return made

    def _count(self, storage: Any, kind: str) -> None:
        size = math.ceil(storage.nbytes() / self._block) * self._block
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
        address = storage._cdata
        self._kinds[address] = (kind, size)
        self._alive[address] = weakref.ref(storage, partial(self._freed, address))

    def _freed(self, address: int, _: object) -> None:
        kind, size = self._kinds.pop(address)
        del self._alive[address]
        if kind != OUTSIDE:
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


def inside_onednn(operation: Any, arguments: Any, made: Any) -> Sequence[int]:
    """On a CPU: a convolution's gradients are made in the layout of oneDNN first, from a copy in
    that layout.

    As torch 2.13 does it for most shapes: the gradient of the inputs twice beside the copy, then
    that of the weight.
    """
    if operation is not torch.ops.aten.convolution_backward.default or not _uses_onednn(
        *arguments[1:3]
    ):
        return ()
    copied, of_inputs, of_weight = (
        0 if each is None else each.numel() * each.element_size()
        for each in (arguments[0], *made[:2])
    )
    return (copied + of_inputs - of_weight, copied + of_weight)


def _uses_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """A small image alone is computed without it (ConvParams::use_mkldnn in torch)."""
    return inputs.shape[0] > 1 or inputs.numel() > 20480 or min(weight.shape[2:]) > 3
