"""Micro-batches on their way to the device: on a GPU the next one travels while the present one is worked on."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from train.batch.window import Batch, MicroBatch
from train.data.pixels import scaled
from train.data.shares import RankShare


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the device, in its own types; the host does not wait for pinned memory.

    `dtype`: of the model's parameters. Only float64 widens the columns: else a model's arguments are cast as they enter
    it (train/models/precision.py), and what the task keeps for itself never.
    """
    if dtype is not torch.float64:
        return {name: column.to(device, non_blocking=True) for name, column in batch.items()}
    return {name: column.to(device, _widened(column), non_blocking=True) for name, column in batch.items()}


def _widened(column: Tensor) -> torch.dtype:
    return torch.float64 if column.is_floating_point() else column.dtype


def _pinned(batch: Batch) -> Batch:
    return {name: column.pin_memory() for name, column in batch.items()}


class Side:
    """A stream of a GPU, beside the one that computes, for copies from the host."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> Batch:
        """Tensors that will hold the batch.

        Their memory is the computing stream's: what used it before is queued there already, and is waited for. So at
        most two micro-batches are on the device, however far the host runs ahead.
        """
        on_device = {}
        for name, column in batch.items():
            dtype = _widened(column) if self._dtype is torch.float64 else column.dtype
            on_device[name] = torch.empty_like(column, device=self._device, dtype=dtype)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, column in batch.items():
                on_device[name].copy_(column, non_blocking=True)
        return on_device

    def wait(self) -> None:
        """What is computed from here on comes after the copies that were started. The host waits for nothing."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def travelling(batches: Iterable[Batch], device: torch.device, dtype: torch.dtype) -> Iterator[Batch]:
    """Each batch on the device: on a GPU the next one is read, and travels, while the present one is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, dtype)
        return
    yield from one_ahead(batches, Side(device, dtype))


def one_ahead(batches: Iterable[Batch], side: Side) -> Iterator[Batch]:
    coming: Batch | None = None
    for batch in batches:
        side.wait()  # for the one that travels, before the next one starts: its work shall not wait for that
        present, coming = coming, side.start(_pinned(batch))
        if present is not None:
            yield present
    if coming is not None:
        side.wait()
        yield coming


class Feed:
    """Hands out micro-batches on the device, in the order in which they are trained."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._side = Side(device, dtype) if device.type == "cuda" else None
        self._most: int | None = None  # samples of a micro-batch
        self._coming: deque[MicroBatch] = deque()
        self._travelling: tuple[MicroBatch, Batch] | None = None

    def announced(self, shares: Iterator[RankShare]) -> Iterator[RankShare]:
        """The same shares, a step ahead of their training: on a GPU in pinned memory, and expected in this order."""
        return shares if self._side is None else self._announced(shares)

    def _announced(self, shares: Iterator[RankShare]) -> Iterator[RankShare]:
        for share in shares:
            cut = share if self._most is None else share.recut(self._most)
            pinned = cut.placed(_pinned)
            self.expect(pinned)
            yield pinned

    def expect(self, micro_batches: Iterable[MicroBatch]) -> None:
        """These are the next ones to be trained, after those that were announced before."""
        self._coming.extend(micro_batches)

    def shrink(self, most: int) -> None:
        """From now on micro-batches of at most `most` samples; what was expected comes in others."""
        self._most = most
        if self._side is not None and self._travelling is not None:
            self._side.wait()  # before the memory of a copy that nobody takes is used again
        self._coming.clear()
        self._travelling = None

    def take(self, micro_batch: MicroBatch) -> Batch:
        """The micro-batch on the device, its pixels scaled. The one that is expected next starts to travel."""
        if self._side is None:
            batch = to_device(micro_batch.batch, self._device, self._dtype)
        else:
            batch = self._arrived(micro_batch)
        for name in micro_batch.pixels:
            image = scaled(batch[name])
            batch[name] = image.double() if self._dtype is torch.float64 else image
        return batch

    def _arrived(self, micro_batch: MicroBatch) -> Batch:
        assert self._side is not None
        is_here = self._travelling is not None and self._travelling[0] is micro_batch
        if not is_here and not any(each is micro_batch for each in self._coming):
            return to_device(micro_batch.batch, self._device, self._dtype)  # nobody announced it
        # Before the next copy starts: what is computed now shall not wait for that one. Also for a copy that nobody
        # takes, since its step was left out: before its memory is used again.
        self._side.wait()
        if self._travelling and is_here:
            batch = self._travelling[1]
        else:
            batch = to_device(micro_batch.batch, self._device, self._dtype)
            while self._coming.popleft() is not micro_batch:
                pass
        following = self._coming.popleft() if self._coming else None
        self._travelling = (following, self._side.start(following.batch)) if following else None
        return batch
