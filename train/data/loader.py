"""Samples that are read from the disk or transformed, by worker processes ahead of the step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee

import numpy as np
import torch

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import Batch, Place
from train.data.pixels import as_a_task_gets_it, pixels_of
from train.data.protocols import TrainingSet, assignments
from train.data.read_ahead import Answer, Queue, raised
from train.data.reading import Picked, stack
from train.data.requested import Request, Requested, Step, request_of_step, requests_in_turn
from train.data.rows import Rows, Table, finished
from train.data.shares import DataError, RankShare
from train.data.workers import answered, check_shared_memory
from train.randomness import Generators, seed_of_sample

Transform = Callable[[Batch, torch.Generator], Batch]
"""(one sample, a generator for its random numbers) -> the sample; columns without a dimension for
samples.
"""


@dataclass(frozen=True)
class Loader(TrainingSet):
    """Samples that are fetched by worker processes, or in the rank itself without workers.

    Which samples a step gets, and what a transform makes of each, depends on seed, epoch and sample
    alone: never on the number of workers or ranks, or on where the run was resumed. That holds for
    draws from the global generators of a process, too.
    """

    samples: Rows | Table
    transform: Transform | None
    seed: int
    workers: int
    timeout_seconds: float  # for one request
    keeps_pixels: bool = False  # images of 8 bits as they are stored: the device scales them
    is_deferred: bool = False  # requests are micro-batches, not a step's samples
    # The same samples, with the columns that weights are counted from.
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
        """Nothing is weighed ahead of a transform: what it makes is known when it is made."""
        can_weigh = bool(weighed) and self.transform is None and self.samples.has(weighed)
        weighing = self.samples.only(weighed) if can_weigh else None
        return replace(self, keeps_pixels=True, is_deferred=True, weighing=weighing)

    def fetch(self, ids: Ids, epoch: int = 0) -> Batch:
        """The samples `ids`, in that order, read in this process."""
        picked = self.samples.pick(ids)
        if self.transform is None:
            batch = stack(picked, ids)
            images = self.samples.images
            if self.keeps_pixels:
                images -= pixels_of(batch, images)
            return finished(batch, images, ids)
        return self._transformed(self.transform, picked, ids, epoch)

    def _transformed(self, transform: Transform, picked: Picked, ids: Ids, epoch: int) -> Batch:
        columns: dict[str, list[torch.Tensor]] = {}
        generators = Generators()
        # Without workers the training draws from the same generators: they are put back.
        with generators.kept():
            for i, sample_id in enumerate(ids.tolist()):
                stored = {name: column[i] for name, column in picked.items()}
                sample = finished(stored, self.samples.images, range(0))
                # A transform gets the columns of the data alone, and may give any number of them.
                del sample["sample_id"]
                seed = seed_of_sample(self.seed, epoch, sample_id)
                # The global ones too: what a transform draws from them would be the same on all
                # ranks and for all seeds (docs/edges.md).
                generators.seed(seed)
                transformed = transform(sample, torch.Generator().manual_seed(seed))
                for name, value in transformed.items():
                    columns.setdefault(name, []).append(torch.as_tensor(value))
        return finished(stack(columns, ids, "data.transform"), frozenset(), ids)

    def __getitems__(self, request: Request) -> Answer:
        """What DataLoader calls in a worker.

        An error of the data is handed over as it is, not as a worker's traceback.
        """
        try:
            if not request.weighs:
                return self.fetch(request.ids, request.epoch)
            assert self.weighing is not None
            batch = stack(self.weighing.pick(request.ids), request.ids)
            return finished(batch, self.weighing.images, request.ids)
        except DataError as error:
            return error

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    @cached_property
    def bytes_of_sample(self) -> int:
        """Of the first one, as it is read."""
        return sum(column.nbytes for column in self.fetch(np.arange(min(1, len(self)))).values())

    @property
    def images_as_stored(self) -> frozenset[str]:
        """Columns that may be left to the device to scale; a transform gets them scaled."""
        return self.samples.images if self.transform is None else frozenset()

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """As train.data.protocols.EvaluationSet."""
        self._check_shared(min(size, len(ids)))
        # Epoch 0 always: what eval_transform draws is the same at each evaluation.
        requests = (Request(0, ids[start : start + size]) for start in range(0, len(ids), size))
        stored = replace(self, keeps_pixels=True)
        with answered(requests, stored, self.workers, self.timeout_seconds) as read:
            for batch in map(raised, read):
                yield as_a_task_gets_it(batch, pixels_of(batch, self.images_as_stored))

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        return self.read(assignments(plan, seed, rank, position, overfit))

    def read(self, steps: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """This rank's shares of steps: (epoch, which samples)."""
        # Lazily: steps have no end, and workers ask for a few ahead.
        numbered = (Step(number, *step) for number, step in enumerate(steps))
        if self.is_deferred:
            return self._by_micro_batch(numbered)
        # The device scales images of 8 bits; `fetch` alone gives them scaled.
        return replace(self, keeps_pixels=True)._by_step(numbered)

    def _by_step(self, steps: Iterator[Step]) -> Iterator[RankShare]:
        """One request for a step: its samples, and behind them a filler where one is needed."""
        # The workers are ahead of the steps that are handed out.
        steps, requested = tee(steps)
        requests = self._checked(map(request_of_step, requested))
        with answered(requests, self, self.workers, self.timeout_seconds) as read:
            for step, batch in zip(steps, map(raised, read), strict=False):
                count = sum(step.assignment.sizes)
                filler = {}
                if 0 in step.assignment.sizes:
                    filler = {name: column[count:] for name, column in batch.items()}
                yield RankShare.of(
                    step.epoch,
                    step.assignment,
                    samples={name: column[:count] for name, column in batch.items()},
                    filler=filler,
                    pixels=pixels_of(batch, self.images_as_stored),
                )

    def _by_micro_batch(self, steps: Iterator[Step]) -> Iterator[RankShare]:
        steps, requested = tee(steps)
        queue = Queue()
        # Noted as workers ask for them, ahead of the steps that are handed out.
        requests = self._checked(queue.noted(requests_in_turn(requested, self.is_weighed)))
        with (
            answered(requests, self, self.workers, self.timeout_seconds) as read,
            queue.reading(read),
        ):
            for step in steps:
                samples = Requested(
                    fetch=self.fetch,
                    queue=queue,
                    step=step,
                    images=self.images_as_stored,
                    is_weighed=self.is_weighed,
                )
                yield RankShare.of(step.epoch, step.assignment, samples)

    def _checked(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Raises TooLittleShared before the first request for whole samples."""
        is_checked = False
        for request in requests:
            if not is_checked and not request.weighs:
                self._check_shared(len(request.ids))
                is_checked = True
            yield request

    def _check_shared(self, samples: int) -> None:
        if self.workers:
            check_shared_memory(self.workers, samples * self.bytes_of_sample)
