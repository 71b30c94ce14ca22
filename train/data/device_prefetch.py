"""Micro-batches on their way to the device: on a GPU the next one travels while the present one is
worked on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from train.batch.window import Batch, MicroBatch, MicroBatches
from train.data.pixels import Scaled, scaled

NONE: frozenset[str] = frozenset()


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the device, in its own types; the host does not wait for pinned memory.

    `dtype`: of the model's parameters. Only float64 widens the columns: else a model's arguments
    are cast as they enter it (train/models/precision.py), and what the task keeps for itself never.
    """
    if dtype is not torch.float64:
        if device.type == "cpu":
            return dict(batch)
        return {name: column.to(device, non_blocking=True) for name, column in batch.items()}
    return {
        name: column.to(device, _widened(column), non_blocking=True)
        for name, column in batch.items()
    }


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

        Their memory is the computing stream's: what used it before is queued there already, and is
        waited for. So at most two micro-batches are on the device, however far the host runs ahead.
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
        """What is computed from here on comes after the copies that were started. The host waits
        for nothing.
        """
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def travelling(
    batches: Iterable[Batch], device: torch.device, dtype: torch.dtype
) -> Iterator[Batch]:
    """Each batch on the device: on a GPU the next one is read, and travels, while the present one
    is worked on.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, dtype)
        return
    yield from one_ahead(batches, Side(device, dtype), dtype)


def one_ahead(batches: Iterable[Batch], side: Side, dtype: torch.dtype) -> Iterator[Batch]:
    coming: tuple[Batch, frozenset[str]] | None = None  # and which columns are pixels
    for batch in batches:
        stored, pixels = (
            (batch.stored(), batch.pixels) if isinstance(batch, Scaled) else (batch, NONE)
        )
        # for the one that travels, before the next one starts: its work shall not wait for that
        side.wait()
        present, coming = coming, (side.start(_pinned(stored)), pixels)
        if present is not None:
            yield _scaled(*present, dtype)
    if coming is not None:
        side.wait()
        yield _scaled(*coming, dtype)


def _scaled(batch: Batch, pixels: frozenset[str], dtype: torch.dtype) -> Batch:
    """The same batch, its pixels scaled where they are."""
    for name in pixels:
        image = scaled(batch[name])
        batch[name] = image.double() if dtype is torch.float64 else image
    return batch


class Placeable(MicroBatches, Protocol):
    def placed(self, place: Callable[[Batch], Batch]) -> MicroBatches:
        """The same, their samples where `place` puts a batch."""
        ...

    def recut(self, micro: int) -> "Placeable": ...


class Feed:
    """Hands out micro-batches on the device, in the order in which they are trained."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._side = Side(device, dtype) if device.type == "cuda" else None
        self._most: int | None = None  # samples of a micro-batch
        # that are still to come, the one that is trained first
        self._steps: deque[Announced] = deque()
        self._present: MicroBatch | None = None  # the one that was read out last
        self._travelling: tuple[MicroBatch, Batch] | None = None

    def announce(self, micro_batches: Placeable) -> MicroBatches:
        """The same, of the step after those that were announced before: on a GPU in pinned memory,
        each read one ahead of its turn.
        """
        if self._side is None:
            return micro_batches
        cut = micro_batches if self._most is None else micro_batches.recut(self._most)
        announced = Announced(cut.placed(_pinned), self)
        self._steps.append(announced)
        return announced

    def begin(self, step: "Announced") -> None:
        """Those before it are trained, or left out."""
        if step not in self._steps:  # announced before a shrink, which has not changed its sizes
            self._steps.appendleft(step)
        while self._steps[0] is not step:
            self._steps.popleft()

    def hand_out(self, micro_batch: MicroBatch) -> None:
        """It is the next to be trained. The one after it is read now: what was asked of the device
        goes on.
        """
        self._present = micro_batch
        self._following()

    def _following(self) -> MicroBatch | None:
        for step in self._steps:
            following = step.upcoming()
            if following is not None:
                return following
        return None

    def shrink(self, most: int) -> None:
        """From now on micro-batches of at most `most` samples; what was announced comes
        in others.
        """
        self._most = most
        if self._side is not None and self._travelling is not None:
            self._side.wait()  # before the memory of a copy that nobody takes is used again
        self._steps.clear()
        self._travelling = None

    def take(self, micro_batch: MicroBatch) -> Batch:
        """The micro-batch on the device, its pixels scaled. The one that is expected next starts to
        travel.
        """
        if self._side is None or micro_batch is not self._present:  # nobody announced it
            batch = to_device(micro_batch.batch, self._device, self._dtype)
        else:
            batch = self._arrived(micro_batch, self._side)
        return _scaled(batch, micro_batch.pixels, self._dtype)

    def _arrived(self, micro_batch: MicroBatch, side: Side) -> Batch:
        # Before the next copy starts: what is computed now shall not wait for that one. Also for a
        # copy that nobody takes, since its step was left out: before its memory is used again.
        side.wait()
        if self._travelling and self._travelling[0] is micro_batch:
            batch = self._travelling[1]
        else:
            batch = to_device(micro_batch.batch, self._device, self._dtype)
        following = self._following()
        self._travelling = (following, side.start(following.batch)) if following else None
        return batch


class Announced:
    """Micro-batches of a step, of which the next one is read while the present one is worked on
    (train.batch.window.MicroBatches). The first time: nobody expects them again."""

    def __init__(self, inner: MicroBatches, feed: Feed) -> None:
        self._inner = inner
        self._feed = feed
        self._reading: Iterator[MicroBatch] | None = None
        self._read: MicroBatch | None = None  # and not handed out
        self._has_begun = False

    @property
    def sizes(self) -> Sequence[int]:
        return self._inner.sizes

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._has_begun:
            return iter(self._inner)
        self._has_begun = True
        return self._handed_out()

    def _handed_out(self) -> Iterator[MicroBatch]:
        self._feed.begin(self)
        while True:
            present = self.upcoming()
            if present is None:
                return
            self._read = None
            self._feed.hand_out(present)
            yield present

    def upcoming(self) -> MicroBatch | None:
        """The next to be handed out, read now if it was not; None: there is none."""
        if self._reading is None:
            self._reading = iter(self._inner)
        if self._read is None:
            self._read = next(self._reading, None)
        return self._read

    def recut(self, micro: int) -> MicroBatches:
        cut = self._inner.recut(micro)
        return self if cut is self._inner else cut
