"""Samples that cost time: read from the disk or transformed, in worker processes, ahead of the step
that needs them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import starmap, tee
from typing import NamedTuple

import numpy as np
import torch

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import Batch, Place
from train.data.deferred import Deferred, cut_anew, spans
from train.data.pixels import as_a_task_gets_it, pixels_of
from train.data.read_ahead import Answer, Queue, raised
from train.data.reading import stack
from train.data.rows import Rows, Table, finished
from train.data.shares import DataError, RankShare, assignments
from train.data.workers import answered, check_shared_memory
from train.randomness import Generators, seed_of_sample

Transform = Callable[[Batch, torch.Generator], Batch]
"""(one sample, a generator for its random numbers) -> the sample; columns without a dimension for
samples.
"""

WEIGHED_AT_ONCE = 1024  # samples


class Request(NamedTuple):
    epoch: int
    ids: Ids
    weighs: bool = False  # only the columns that weights are counted from


@dataclass(frozen=True)
class Loader:
    """Which samples a step gets, and what a transform makes of each, depends on seed, epoch and
    sample alone: never on the number of workers, of ranks, or on where the run was resumed. That
    holds for draws from the generators that a process has, too.
    """

    samples: Rows | Table
    transform: Transform | None
    seed: int
    workers: int
    timeout_seconds: float  # for one request
    keeps_pixels: bool = False  # images of 8 bits as they are stored: the device scales them
    is_deferred: bool = False  # requests are micro-batches, not a step's samples
    # the same samples, with the columns that weights are counted from
    weighing: Rows | Table | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def size(self) -> int:
        return len(self)

    @property
    def is_weighed(self) -> bool:
        return self.weighing is not None

    def deferred(self, weighed: Sequence[str]) -> "Loader":
        """As data.shares has it. What a transform makes is known when it is made."""
        can_weigh = bool(weighed) and self.transform is None and self.samples.has(weighed)
        weighing = self.samples.only(weighed) if can_weigh else None
        return replace(self, keeps_pixels=True, is_deferred=True, weighing=weighing)

    def fetch(self, ids: Ids, epoch: int = 0) -> Batch:
        picked, images = self.samples.pick(ids), self.samples.images
        if self.transform is None:
            batch = stack(picked, ids)
            return finished(
                batch, images - pixels_of(batch, images) if self.keeps_pixels else images, ids
            )
        made: dict[str, list[torch.Tensor]] = {}
        generators = Generators()
        with generators.kept():  # without workers the training draws from these
            for i, sample_id in enumerate(ids.tolist()):
                sample = finished(
                    {name: column[i] for name, column in picked.items()}, images, range(0)
                )
                del sample["sample_id"]
                seed = seed_of_sample(self.seed, epoch, sample_id)
                generators.seed(seed)
                for name, value in self.transform(
                    sample, torch.Generator().manual_seed(seed)
                ).items():
                    made.setdefault(name, []).append(torch.as_tensor(value))
        return finished(stack(made, ids, "data.transform"), frozenset(), ids)

    def __getitems__(self, request: Request) -> Answer:
        """What DataLoader calls. An error of the data is handed over as it is, not as a worker's
        traceback.
        """
        try:
            if request.weighs:
                assert self.weighing is not None
                return finished(
                    stack(self.weighing.pick(request.ids), request.ids),
                    self.weighing.images,
                    request.ids,
                )
            return self.fetch(request.ids, request.epoch)
        except DataError as error:
            return error

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    @cached_property
    def bytes_of_sample(self) -> int:
        """Of the first one, as it is read."""
        return sum(column.nbytes for column in self.fetch(np.arange(min(1, len(self)))).values())

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        self._check_shared(min(size, len(ids)))
        requests = (Request(0, ids[start : start + size]) for start in range(0, len(ids), size))
        stored = replace(self, keeps_pixels=True)
        with answered(requests, stored, self.workers, self.timeout_seconds) as read:
            for batch in map(raised, read):
                pixels = (
                    pixels_of(batch, self.samples.images) if self.transform is None else frozenset()
                )
                yield as_a_task_gets_it(batch, pixels)

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """As data.shares has it."""
        return self.read(assignments(plan, seed, rank, place, overfit))

    def read(self, wanted: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """This rank's shares of the steps that are wanted: (epoch, which samples)."""
        return (
            self._deferred(wanted)
            if self.is_deferred
            else replace(self, keeps_pixels=True)._whole(wanted)
        )

    def _whole(self, wanted: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """A filler is read behind the samples of its step."""
        wanted, asked = tee(wanted)
        requests = (
            Request(
                epoch,
                np.concatenate([found.ids, found.filler_ids]) if 0 in found.sizes else found.ids,
            )
            for epoch, found in asked
        )
        with answered(self._checked(requests), self, self.workers, self.timeout_seconds) as read:
            for (epoch, found), batch in zip(wanted, map(raised, read), strict=False):
                count = sum(found.sizes)
                filler = {}
                if 0 in found.sizes:
                    filler = {name: column[count:] for name, column in batch.items()}
                yield RankShare(
                    epoch=epoch,
                    last_of_epoch=found.last_of_epoch,
                    samples={name: column[:count] for name, column in batch.items()},
                    sizes=found.sizes,
                    filler=filler,
                    pixels=pixels_of(batch, self.samples.images)
                    if self.transform is None
                    else frozenset(),
                    largest=found.largest,
                    of_step=found.samples,
                )

    def _deferred(self, wanted: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        wanted, asked = tee(wanted)
        queue = Queue()
        requests = self._checked(queue.noted(self._micro_batches(asked)))
        with (
            answered(requests, self, self.workers, self.timeout_seconds) as read,
            queue.reading(read),
        ):
            for number, (epoch, found) in enumerate(wanted):
                yield RankShare(
                    epoch=epoch,
                    last_of_epoch=found.last_of_epoch,
                    samples=_Requested(self, queue, number, epoch, found),
                    sizes=found.sizes,
                    largest=found.largest,
                    of_step=found.samples,
                )

    def _micro_batches(
        self, asked: Iterable[tuple[int, Assignment]]
    ) -> Iterator[tuple[tuple[int, int], Request]]:
        """((step, part of it), request), about in the order in which a run takes them: the weights
        of a step one step before its micro-batches.
        """
        before: tuple[int, int, Assignment] | None = None
        for number, (epoch, found) in enumerate(asked):
            if self.weighing is None:
                yield from _of_step(number, epoch, found)
                continue
            for i, start in enumerate(range(0, len(found.ids), WEIGHED_AT_ONCE)):
                yield (
                    (number, -1 - i),
                    Request(epoch, found.ids[start : start + WEIGHED_AT_ONCE], weighs=True),
                )
            if before is not None:
                yield from _of_step(*before)
            before = number, epoch, found
        if before is not None:
            yield from _of_step(*before)

    def _checked(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Raises TooLittleShared before the first of them that reads whole samples."""
        is_checked = False
        for request in requests:
            if not is_checked and not request.weighs:
                self._check_shared(len(request.ids))
                is_checked = True
            yield request

    def _check_shared(self, samples: int) -> None:
        if self.workers:
            check_shared_memory(self.workers, samples * self.bytes_of_sample)


class _Requested(Deferred):
    """One rank's samples of a step that were asked for as micro-batches."""

    def __init__(
        self, loader: Loader, queue: Queue, number: int, epoch: int, found: Assignment
    ) -> None:
        self.images = loader.samples.images if loader.transform is None else frozenset()
        self.is_weighed = loader.weighing is not None
        self._loader = loader
        self._queue = queue
        self._number = number
        self._epoch = epoch
        self._found = found
        self._is_taken = False  # workers read it once
        self._filler: Batch | None = None

    def pieces(self, sizes: Sequence[int]) -> Iterator[Batch]:
        full = [size for size in sizes if size]
        read = starmap(self._fetch, spans(full)) if self._is_taken else self._ahead(full)
        self._is_taken = True
        for size in sizes:
            yield next(read) if size else self._one_filler()

    def _ahead(self, full: Sequence[int]) -> Iterator[Batch]:
        """In the sizes that were asked for, or cut anew."""
        asked = [(i, size) for i, size in enumerate(self._found.sizes) if size]
        pieces = self._taken(i for i, _ in asked)
        return pieces if [size for _, size in asked] == list(full) else cut_anew(pieces, full)

    def _taken(self, parts: Iterable[int]) -> Iterator[Batch]:
        places = list(spans(self._found.sizes))
        for part in parts:
            batch = self._queue.take((self._number, part))
            yield self._fetch(*places[part]) if batch is None else batch

    def _fetch(self, start: int, stop: int) -> Batch:
        return self._loader.fetch(self._found.ids[start:stop], self._epoch)

    def _one_filler(self) -> Batch:
        if self._filler is None:
            read = (
                self._queue.take((self._number, self._found.sizes.index(0)))
                if 0 in self._found.sizes
                else None
            )
            self._filler = (
                self._loader.fetch(self._found.filler_ids, self._epoch) if read is None else read
            )
        return self._filler

    def weighed(self) -> Iterator[Batch]:
        for i in range(-(-len(self._found.ids) // WEIGHED_AT_ONCE)):
            batch = self._queue.take((self._number, -1 - i))
            assert batch is not None, "weights are counted once"
            yield batch


def _of_step(
    number: int, epoch: int, found: Assignment
) -> Iterator[tuple[tuple[int, int], Request]]:
    """A filler is asked for once."""
    for part, (start, stop) in enumerate(spans(found.sizes)):
        if stop > start:
            yield (number, part), Request(epoch, found.ids[start:stop])
    if 0 in found.sizes:
        yield (number, found.sizes.index(0)), Request(epoch, found.filler_ids)
