"""Micro-batches of a step that are requested from workers, in the sizes of the plan."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import starmap
from typing import NamedTuple

import numpy as np

from train.batch import Assignment
from train.batch.order import Ids
from train.batch.window import Batch
from train.data.deferred import Deferred, cut_anew, spans
from train.data.read_ahead import Key, Queue

WEIGHED_AT_ONCE = 1024  # samples


class Step(NamedTuple):
    """This rank's samples of a step, as they are requested."""

    number: int  # counted from 0, from where reading begins
    epoch: int
    assignment: Assignment


class Request(NamedTuple):
    epoch: int
    ids: Ids
    weighs: bool = False  # only the columns that weights are counted from


KeyedRequest = tuple[Key, Request]


def request_of_step(step: Step) -> Request:
    """All samples, and behind them a filler where one is needed."""
    # In one request with the samples: a step then has one answer.
    ids = step.assignment.ids
    if 0 in step.assignment.sizes:
        ids = np.concatenate([ids, step.assignment.filler_ids])
    return Request(step.epoch, ids)


def requests_in_turn(steps: Iterable[Step], weighs_ahead: bool) -> Iterator[KeyedRequest]:
    """By micro-batch, about in the order in which a run takes the answers.

    `weighs_ahead`: the weights of a step come one step before its micro-batches.
    """
    if not weighs_ahead:
        for step in steps:
            yield from _micro_batches_of(step)
        return
    # One step apart, as windows are counted one step ahead (train/data/windows.py): in another
    # order, what is needed first would wait in the queue behind what is needed later.
    before: Step | None = None
    for step in steps:
        yield from _weights_of(step)
        if before is not None:
            yield from _micro_batches_of(before)
        before = step
    if before is not None:
        yield from _micro_batches_of(before)


def _micro_batches_of(step: Step) -> Iterator[KeyedRequest]:
    """A filler is requested once."""
    assignment = step.assignment
    for part, (start, stop) in enumerate(spans(assignment.sizes)):
        if stop > start:
            yield Key(step.number, part), Request(step.epoch, assignment.ids[start:stop])
    if 0 in assignment.sizes:
        key = Key(step.number, assignment.sizes.index(0))
        yield key, Request(step.epoch, assignment.filler_ids)


def _weights_of(step: Step) -> Iterator[KeyedRequest]:
    ids = step.assignment.ids
    for part, start in enumerate(range(0, len(ids), WEIGHED_AT_ONCE)):
        request = Request(step.epoch, ids[start : start + WEIGHED_AT_ONCE], weighs=True)
        yield _weights_key(step.number, part), request


def _weights_key(step: int, part: int) -> Key:
    """Below 0, where no micro-batch has its key."""
    return Key(step, -1 - part)


class Requested(Deferred):
    """One rank's samples of a step, taken from the queue of what workers have read."""

    def __init__(
        self,
        fetch: Callable[[Ids, int], Batch],
        queue: Queue,
        step: Step,
        images: frozenset[str],
        is_weighed: bool,
    ) -> None:
        """`fetch` reads (ids, epoch) in this process: what the queue does not have, or no more."""
        self.images = images
        self.is_weighed = is_weighed
        self._fetch = fetch
        self._queue = queue
        self._number = step.number
        self._epoch = step.epoch
        self._assignment = step.assignment
        self._is_taken = False  # workers read it once
        self._filler: Batch | None = None

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        full = [size for size in sizes if size]
        # Again, as for a step that is computed twice: the queue has given it away.
        if self._is_taken:
            read: Iterator[Batch] = starmap(self._read, spans(full))
        else:
            read = self._from_queue(full)
            self._is_taken = True
        for size in sizes:
            yield next(read) if size else self._one_filler()

    def _from_queue(self, full: Sequence[int]) -> Iterator[Batch]:
        """In the sizes that were requested, or cut anew."""
        parts = [part for part, size in enumerate(self._assignment.sizes) if size]
        requested = [self._assignment.sizes[part] for part in parts]
        pieces = map(self._take, parts)
        if requested == list(full):
            return pieces
        return cut_anew(pieces, full)

    def _take(self, part: int) -> Batch:
        batch = self._queue.take(Key(self._number, part))
        if batch is not None:
            return batch
        start = sum(self._assignment.sizes[:part])
        return self._read(start, start + self._assignment.sizes[part])

    def _read(self, start: int, stop: int) -> Batch:
        return self._fetch(self._assignment.ids[start:stop], self._epoch)

    def _one_filler(self) -> Batch:
        # Kept: workers read it once, and a rank may take it several times.
        if self._filler is None and 0 in self._assignment.sizes:
            part = self._assignment.sizes.index(0)
            self._filler = self._queue.take(Key(self._number, part))
        if self._filler is None:
            self._filler = self._fetch(self._assignment.filler_ids, self._epoch)
        return self._filler

    def weighed(self) -> Iterator[Batch]:
        for part in range(math.ceil(len(self._assignment.ids) / WEIGHED_AT_ONCE)):
            batch = self._queue.take(_weights_key(self._number, part))
            assert batch is not None, "weights are counted once"
            yield batch
