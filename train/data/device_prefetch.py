"""Micro-batches on their way to the device.

On a GPU the next one is copied while the present one is computed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from train.batch.window import Batch, MicroBatch, MicroBatches
from train.data.micro_batches import WrappedMicroBatches
from train.data.pixels import Scaled, scaled

NO_PIXELS: frozenset[str] = frozenset()


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on the device, in its own types; the host does not wait for pinned memory.

    `dtype`: of the model's parameters. Only float64 widens the columns: else a model's arguments
    are cast as they enter it (models/cast_arguments.py), and what the task keeps for itself never.
    """
    if dtype is torch.float64:
        return {
            name: column.to(device, _widened(column), non_blocking=True)
            for name, column in batch.items()
        }
    # A dict of our own: `_scaled` puts other columns into it, and a step may be computed twice.
    if device.type == "cpu":
        return dict(batch)
    return {name: column.to(device, non_blocking=True) for name, column in batch.items()}


def _widened(column: Tensor) -> torch.dtype:
    return torch.float64 if column.is_floating_point() else column.dtype


def _pinned(batch: Batch) -> Batch:
    return {name: column.pin_memory() for name, column in batch.items()}


class Side:
    """A stream of a GPU, beside the one that computes, for copies from the host."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
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
        # The copy waits for all that is queued so far: the memory may have been in use there.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, column in batch.items():
                on_device[name].copy_(column, non_blocking=True)
        return on_device

    def wait(self) -> None:
        """What is computed from here on comes after the copies that were started.

        The host waits for nothing.
        """
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def travelling(
    batches: Iterable[Batch], device: torch.device, dtype: torch.dtype
) -> Iterator[Batch]:
    """Each batch on the device; on a GPU one is read and copied ahead."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, dtype)
        return
    yield from one_ahead(batches, Side(device, dtype), dtype)


def one_ahead(batches: Iterable[Batch], side: Side, dtype: torch.dtype) -> Iterator[Batch]:
    ahead: Batch | None = None
    pixels_ahead = NO_PIXELS
    for batch in batches:
        stored = batch
        pixels = NO_PIXELS
        if isinstance(batch, Scaled):
            stored = batch.stored()
            pixels = batch.pixels
        # For the one that is on its way, before the next copy starts: what is computed from it
        # shall not wait for that one.
        side.wait()
        present = ahead
        pixels_of_present = pixels_ahead
        ahead = side.start(_pinned(stored))
        pixels_ahead = pixels
        if present is not None:
            yield _scaled(present, pixels_of_present, dtype)
    if ahead is not None:
        side.wait()
        yield _scaled(ahead, pixels_ahead, dtype)


def _scaled(batch: Batch, pixels: frozenset[str], dtype: torch.dtype) -> Batch:
    """The same batch, its pixels scaled where they are."""
    for name in pixels:
        image = scaled(batch[name])
        if dtype is torch.float64:
            image = image.double()
        batch[name] = image
    return batch


class Placeable(MicroBatches, Protocol):
    def placed(self, place: Callable[[Batch], Batch]) -> MicroBatches:
        """The same, their samples where `place` puts a batch."""
        ...

    def recut(self, micro: int) -> "Placeable": ...


@dataclass(frozen=True)
class _Copy:
    """A micro-batch that was sent ahead of its turn."""

    micro_batch: MicroBatch
    on_device: Batch


class Feed:
    """Hands out micro-batches on the device, in the order in which they are trained."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._side = Side(device, dtype) if device.type == "cuda" else None
        self._max_samples: int | None = None  # of a micro-batch, after a shrink
        # Those that are still to be trained, in this order.
        self._steps: deque[Announced] = deque()
        self._present: MicroBatch | None = None  # the one that was handed out last
        self._copy: _Copy | None = None

    def announce(self, micro_batches: Placeable) -> MicroBatches:
        """The same, of the step after those that were announced before.

        On a GPU in pinned memory, each read one ahead of its turn.
        """
        if self._side is None:
            return micro_batches
        # Cut before it is announced: what travels has to be what is trained, else nobody takes the
        # copy.
        if self._max_samples is not None:
            micro_batches = micro_batches.recut(self._max_samples)
        announced = Announced(micro_batches.placed(_pinned), self)
        self._steps.append(announced)
        return announced

    def begin(self, step: "Announced") -> None:
        """The steps announced before this one are trained, or skipped."""
        if step not in self._steps:  # announced before a shrink, which has not changed its sizes
            self._steps.appendleft(step)
        # A step in which nothing counts is announced as the others, and never taken.
        while self._steps[0] is not step:
            self._steps.popleft()

    def hand_out(self, micro_batch: MicroBatch) -> None:
        """It is trained next. The one after it is read now: the device works on meanwhile."""
        self._present = micro_batch
        self._following()

    def _following(self) -> MicroBatch | None:
        # Also of the next step, so that its first micro-batch travels during the last one of this.
        for step in self._steps:
            following = step.upcoming()
            if following is not None:
                return following
        return None

    def shrink(self, most: int) -> None:
        """From now on micro-batches of at most `most` samples.

        Steps that were announced come again, in smaller ones.
        """
        self._max_samples = most
        if self._side is not None and self._copy is not None:
            self._side.wait()  # before the memory of a copy that nobody takes is used again
        self._steps.clear()
        self._copy = None

    def take(self, micro_batch: MicroBatch) -> Batch:
        """The micro-batch on the device, its pixels scaled. The copy of the next one is started."""
        if self._side is None or micro_batch is not self._present:  # nobody announced it
            batch = to_device(micro_batch.batch, self._device, self._dtype)
        else:
            batch = self._arrived(micro_batch, self._side)
        return _scaled(batch, micro_batch.pixels, self._dtype)

    def _arrived(self, micro_batch: MicroBatch, side: Side) -> Batch:
        # Before the next copy starts: what is computed now shall not wait for that one. Also for a
        # copy that nobody takes, since its step was skipped: before its memory is used again.
        side.wait()
        if self._copy is not None and self._copy.micro_batch is micro_batch:
            batch = self._copy.on_device
        else:
            batch = to_device(micro_batch.batch, self._device, self._dtype)
        following = self._following()
        # A copy that nobody took is freed before memory for the next one is asked for: two
        # micro-batches at most are on the device.
        self._copy = None
        if following is not None:
            self._copy = _Copy(following, side.start(following.batch))
        return batch


class Announced(WrappedMicroBatches):
    """Micro-batches of a step, of which the next one is read while the present one is computed.

    Only the first time that they are iterated over: later the feed expects others
    (train.batch.window.MicroBatches).
    """

    def __init__(self, inner: MicroBatches, feed: Feed) -> None:
        super().__init__(inner)
        self._feed = feed
        self._reading: Iterator[MicroBatch] | None = None
        self._upcoming: MicroBatch | None = None  # read, and not handed out
        self._has_begun = False

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
            self._upcoming = None
            self._feed.hand_out(present)
            yield present

    def upcoming(self) -> MicroBatch | None:
        """The next to be handed out, read now if it was not; None: there is none."""
        if self._reading is None:
            self._reading = iter(self._inner)
        if self._upcoming is None:
            self._upcoming = next(self._reading, None)
        return self._upcoming

    def recut(self, micro: int) -> MicroBatches:
        cut = self._inner.recut(micro)
        return self if cut is self._inner else cut
