"""Activations on a CPU: the peak of the bytes that autograd saves for the backward pass.

A GPU's allocator counts every byte of a step. On a CPU there is no such counter, and the memory of
the process is mostly that of Python and torch. So torch.autograd.graph.saved_tensors_hooks counts
what is saved. The hooks cost time for each tensor, so they count in the step *before* the one of a
row: the times in the row are those of a step without hooks.

A storage counts once, however many operations saved it, from the first save until the backward pass
has freed the last one. Weights, buffers and the samples do not count: they are in memory anyway.
What an operation allocates only while it runs is not seen.

The metric is absent where the count would be wrong: saved-tensor hooks of others hide from ours
what is saved inside theirs (activation checkpointing does this), torch.func refuses to work under
any, and a compiled model decides for itself what it saves. `can_be_counted` tries it before the
first step.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook

from train.batch.window import Batch, MicroBatch, MicroBatches, Window
from train.data.device_prefetch import to_device
from train.memory.sizes import parameters_and_buffers
from train.models.preserve_state import preserve_state
from train.step import Learner
from train.tasks import by_term


class SavedBytes:
    """A context manager that counts what autograd saves inside it."""

    def __init__(self, module: nn.Module) -> None:
        self.peak = 0
        self.saw_all = True
        self._now = 0
        self._times_saved: dict[int, int] = {}  # by address of the storage
        # By address. The tensors are kept, so that no other storage gets their addresses.
        self._excluded: dict[int, Tensor] = {}
        self.exclude(parameters_and_buffers(module))
        self._hooks: Any = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)
        # The hooks and this object refer to each other, so it lives until the next garbage
        # collection: without this line the micro-batch would live as long.
        self._excluded.clear()

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these storages: they are in memory anyway."""
        for tensor in tensors:
            self._excluded[tensor.untyped_storage().data_ptr()] = tensor

    def stop_excluding(self, tensors: Iterable[Tensor]) -> None:
        """The caller no longer needs these tensors, so their addresses may be used again."""
        for tensor in tensors:
            self._excluded.pop(tensor.untyped_storage().data_ptr(), None)

    def freed(self, address: int, size: int) -> None:
        """Autograd has freed one of the tensors in that storage."""
        self._times_saved[address] -= 1
        if not self._times_saved[address]:
            del self._times_saved[address]
            self._now -= size

    def _pack(self, tensor: Tensor) -> "_Saved":
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a sparse tensor has several storages
            self.saw_all = False
            return _Saved(tensor, None, 0, 0)
        # By the address of the storage: views, and tensors that several operations save, are one
        # piece of memory.
        address = storage.data_ptr()
        if address in self._excluded:
            return _Saved(tensor, None, 0, 0)
        times = self._times_saved.get(address, 0)
        self._times_saved[address] = times + 1
        if not times:
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
        return _Saved(tensor, self, address, storage.nbytes())


class _Saved:
    """What autograd holds in place of a tensor; the tensor is freed together with it."""

    __slots__ = ("_address", "_counter", "_size", "tensor", "version")

    def __init__(self, tensor: Tensor, counter: SavedBytes | None, address: int, size: int) -> None:
        self.tensor = tensor
        self.version = tensor._version
        self._counter = counter
        self._address = address
        self._size = size

    def __del__(self) -> None:
        if self._counter is not None:
            self._counter.freed(self._address, self._size)


def _unpack(saved: _Saved) -> Tensor:
    """The tensor that was saved.

    Raises RuntimeError where it was modified in place since. Autograd itself checks this only
    without hooks, and the gradient would be wrong.
    """
    if saved.tensor._version != saved.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {list(saved.tensor.shape)} is at version "
            f"{saved.tensor._version}; expected version {saved.version} instead"
        )
    return saved.tensor


def without_samples(window: Window, saved: SavedBytes) -> Window:
    """The same window; `saved` does not count its samples."""
    return replace(window, micro_batches=_ExcludedMicroBatches(window.micro_batches, saved))


class _ExcludedMicroBatches:
    """The same micro-batches, each excluded from the count while it is being trained on."""

    def __init__(self, inner: MicroBatches, saved: SavedBytes) -> None:
        self._inner = inner
        self._saved = saved

    @property
    def sizes(self) -> Sequence[int]:
        return self._inner.sizes

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[MicroBatch]:
        for micro_batch in self._inner:
            self._saved.exclude(micro_batch.batch.values())
            yield micro_batch
            # Its backward pass is over: another tensor may get its address, and must count.
            self._saved.stop_excluding(micro_batch.batch.values())

    def recut(self, micro: int) -> MicroBatches:
        return _ExcludedMicroBatches(self._inner.recut(micro), self._saved)


def can_be_counted(learner: Learner, batch: Batch) -> bool:
    """Whether the hooks see everything that is saved, tried on this batch; changes nothing."""
    # A compiled graph saves what it likes, by ways that no hook of ours is asked about.
    if learner.module._compiled_call_impl is not None:
        return False
    counter = SavedBytes(learner.module)

    def check_hooks(*_: object) -> None:
        """Save one more tensor at each call of a module, and see whether our hooks get it."""
        before = len(counter._times_saved)
        with torch.inference_mode(False), torch.enable_grad():
            probe = torch.ones(1, requires_grad=True).exp()
        counter.saw_all &= len(counter._times_saved) > before
        del probe

    handle = register_module_forward_pre_hook(check_hooks)
    try:
        with (
            preserve_state(learner.module, learner.device),
            torch.compiler.set_stance("force_eager"),
            counter,
        ):
            on_device = to_device(batch, learner.device, learner.dtype)
            losses = by_term(learner.task.loss_sum(learner.module, on_device))
            # The backward pass, too: reentrant checkpointing refuses autograd.grad, so it raises
            # here, and nothing is counted.
            torch.autograd.grad(list(losses.values()), learner.parameters, allow_unused=True)
    except Exception:  # whatever a model does that cannot be counted: it may still be trained
        return False
    finally:
        handle.remove()
    return counter.saw_all
