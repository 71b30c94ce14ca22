"""Activations on a CPU: the bytes that autograd holds for the backward pass, at most at once.

A GPU's allocator counts every byte of a step. On a CPU there is none to ask, and the memory of the
process is mostly that of Python and torch. So autograd itself is asked, by its hooks around what is
saved. They cost time for each tensor: what is counted is the step before that of a row, so that the
times in the row are those of a step without them.

A storage counts once, however many operations saved it, from the first until the backward pass has
freed the last. What is there anyway counts nowhere: weights, buffers, and the samples as they were
read. What an operation needs for a moment only is not seen.

Absent rather than wrong. Hooks of others hide from ours what is saved inside theirs, as activation
checkpointing does, torch.func refuses to work under any, and a compiled model decides for itself
what it saves. Whether all can be counted is tried before the first step.
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
from train.models.preserve_state import undisturbed
from train.step import Learner
from train.tasks import by_term


class SavedBytes:
    """Counts while it is entered."""

    def __init__(self, module: nn.Module) -> None:
        self.peak = 0
        self.saw_all = True
        self._now = 0
        self._saved: dict[int, int] = {}  # how often each storage is saved, by its address
        # kept, so that nothing else gets their addresses meanwhile
        self._there: dict[int, Tensor] = {}
        self.leave_out(held(module))
        self._hooks: Any = saved_tensors_hooks(self._save, _give_back)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, at)
        # the hooks and this object hold each other: it lives until Python looks for cycles
        self._there.clear()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """They are there anyway."""
        for tensor in tensors:
            self._there[tensor.untyped_storage().data_ptr()] = tensor

    def let_go(self, tensors: Iterable[Tensor]) -> None:
        """They were left out, and are not kept any longer."""
        for tensor in tensors:
            self._there.pop(tensor.untyped_storage().data_ptr(), None)

    def _save(self, tensor: Tensor) -> "_Saved":
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse: it has several
            self.saw_all = False
            return _Saved(tensor, None, 0, 0)
        address = storage.data_ptr()
        if address in self._there:
            return _Saved(tensor, None, 0, 0)
        times = self._saved.get(address, 0)
        self._saved[address] = times + 1
        if not times:
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
        return _Saved(tensor, self, address, storage.nbytes())

    def freed(self, address: int, size: int) -> None:
        """Autograd no longer holds one of the tensors in that storage."""
        self._saved[address] -= 1
        if not self._saved[address]:
            del self._saved[address]
            self._now -= size


class _Saved:
    """What autograd holds instead of a tensor: when it lets go of this, the tensor is freed."""

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


def _give_back(saved: _Saved) -> Tensor:
    """Raises what autograd raises, which under hooks does not look itself: the gradient would be a
    wrong one.
    """
    if saved.tensor._version != saved.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {list(saved.tensor.shape)} is at version "
            f"{saved.tensor._version}; expected version {saved.version} instead"
        )
    return saved.tensor


def without_samples(window: Window, saved: SavedBytes) -> Window:
    """The same window; its samples do not count."""
    return replace(window, micro_batches=_LeftOut(window.micro_batches, saved))


class _LeftOut:
    """The same micro-batches."""

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
            self._saved.leave_out(micro_batch.batch.values())
            yield micro_batch
            # its backward pass is over: others take its place
            self._saved.let_go(micro_batch.batch.values())

    def recut(self, micro: int) -> MicroBatches:
        return _LeftOut(self._inner.recut(micro), self._saved)


def held(module: nn.Module) -> list[Tensor]:
    """What is there whatever is computed."""
    return [*module.parameters(), *module.buffers()]


def can_be_counted(learner: Learner, batch: Batch) -> bool:
    """Whether our hooks see all that is saved, tried on these samples; leaves no trace."""
    if learner.module._compiled_call_impl is not None:
        return False
    counter = SavedBytes(learner.module)

    def is_ours(*_: object) -> None:
        """Saves one more tensor, wherever a module is called: hooks that stand inside ours would
        take it.
        """
        before = len(counter._saved)
        with torch.inference_mode(False), torch.enable_grad():
            kept = torch.ones(1, requires_grad=True).exp()
        counter.saw_all &= len(counter._saved) > before
        del kept

    watch = register_module_forward_pre_hook(is_ours)
    try:
        with (
            undisturbed(learner.module, learner.device),
            torch.compiler.set_stance("force_eager"),
            counter,
        ):
            losses = by_term(
                learner.task.loss_sum(
                    learner.module, to_device(batch, learner.device, learner.dtype)
                )
            )
            torch.autograd.grad(list(losses.values()), learner.parameters, allow_unused=True)
    except Exception:  # whatever a model does that cannot be counted: it may still be trained
        return False
    finally:
        watch.remove()
    return counter.saw_all
