"""Samples that cost time: read from the disk or transformed, in worker processes, ahead of the step that needs them."""

import multiprocessing
import multiprocessing.process
import multiprocessing.util
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import Batch, Place
from train.data.pixels import pixels_of
from train.data.reading import stack
from train.data.rows import Rows, Table, finished
from train.data.shares import DataError, RankShare, assignments
from train.errors import RunFailed
from train.launching import STOP_SIGNALS
from train.randomness import Generators, seed_of_sample
from train.redaction import guard_streams

Transform = Callable[[Batch, torch.Generator], Batch]
"""(one sample, a generator for its random numbers) -> the sample; columns without a dimension for samples."""
Request = tuple[int, Ids]
"""(epoch, samples)"""

AHEAD = 2  # requests that wait in each worker
LOOK_SECONDS = 1.0  # between two looks whether all workers are there, while one is waited for


class WorkerLost(RunFailed):
    """A process that loads samples was killed, or gave nothing for too long."""


@dataclass(frozen=True)
class Loader:
    """Which samples a step gets, and what a transform makes of each, depends on seed, epoch and sample alone: never on
    the number of workers, of ranks, or on where the run was resumed. That holds for draws from the generators that a
    process has, too."""

    samples: Rows | Table
    transform: Transform | None
    seed: int
    workers: int
    timeout_seconds: float  # for one request
    keeps_pixels: bool = False  # images of 8 bits as they are stored: the device scales them

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def size(self) -> int:
        return len(self)

    def fetch(self, ids: Ids, epoch: int = 0) -> Batch:
        picked, images = self.samples.pick(ids), self.samples.images
        if self.transform is None:
            batch = stack(picked, ids)
            return finished(batch, images - pixels_of(batch, images) if self.keeps_pixels else images, ids)
        made: dict[str, list[torch.Tensor]] = {}
        generators = Generators()
        with generators.kept():  # without workers the training draws from these
            for i, sample_id in enumerate(ids.tolist()):
                sample = finished({name: column[i] for name, column in picked.items()}, images, range(0))
                del sample["sample_id"]
                seed = seed_of_sample(self.seed, epoch, sample_id)
                generators.seed(seed)
                for name, value in self.transform(sample, torch.Generator().manual_seed(seed)).items():
                    made.setdefault(name, []).append(torch.as_tensor(value))
        return finished(stack(made, ids, "data.transform"), frozenset(), ids)

    def __getitems__(self, request: Request) -> Batch | DataError:
        """What DataLoader calls. An error of the data is handed over as it is, not as a worker's traceback."""
        epoch, ids = request
        try:
            return self.fetch(ids, epoch)
        except DataError as error:
            return error

    def first(self, seed: int, count: int) -> Batch:
        return self.fetch(sample_ids(len(self), seed, 0, 0, min(count, len(self))))

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        with self._read([(0, ids[start : start + size]) for start in range(0, len(ids), size)]) as read:
            yield from read

    def shares(self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None) -> Iterator[RankShare]:
        """As data.shares has it."""
        return self.read(assignments(plan, seed, rank, place, overfit))

    def read(self, wanted: Iterable[tuple[int, Assignment]]) -> Iterator[RankShare]:
        """A filler is read behind the samples of its step."""
        wanted, asked = tee(wanted)
        requests = (
            (epoch, np.concatenate([found.ids, found.filler_ids]) if 0 in found.sizes else found.ids)
            for epoch, found in asked
        )
        with replace(self, keeps_pixels=True)._read(requests) as read:
            for (epoch, found), batch in zip(wanted, read, strict=False):
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
                    pixels=pixels_of(batch, self.samples.images) if self.transform is None else frozenset(),
                    largest=found.largest,
                    of_step=found.samples,
                )

    @contextmanager
    def _read(self, requests: Iterable[Request]) -> Iterator[Iterator[Batch]]:
        """The samples of each request, in order. Afterwards no worker is left, not even one that is stuck."""
        # DataLoader draws a seed for its workers from it. Nothing else does: each sample has a seed of its own.
        own = torch.Generator()
        loader: Iterable[Batch | DataError] = DataLoader(
            cast(Any, self),
            batch_sampler=cast(Any, requests),
            collate_fn=cast(Any, _as_it_is),
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            timeout=LOOK_SECONDS if self.workers else 0,
            worker_init_fn=_begin_worker,
            generator=own,
        )
        others = set(multiprocessing.active_children())
        with _begun(loader) as read:
            workers = set(multiprocessing.active_children()) - others
            # Of a rank that ends by an error. multiprocessing itself would ask by SIGTERM, and wait.
            at_exit = multiprocessing.util.Finalize(None, _kill, (workers,), exitpriority=1)
            try:
                yield self._checked(read)
            finally:
                _end(read, workers)
                at_exit.cancel()

    def _checked(self, read: Iterator[Batch | DataError]) -> Iterator[Batch]:
        while True:
            try:
                batch = self._next(read)
            except StopIteration:
                return
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def _next(self, read: Iterator[Batch | DataError]) -> Batch | DataError:
        """Raises WorkerLost."""
        looks = 0  # counted, not timed: a job that wakes from a long freeze has waited for one
        while True:
            looks += 1
            try:
                return next(read)
            except RuntimeError as error:
                said = str(error)
                if not said.startswith("DataLoader"):
                    raise
                late = said.startswith("DataLoader timed out")  # no worker is gone: it may be asked again
                if late and looks * LOOK_SECONDS < self.timeout_seconds:
                    continue
                why = f"no worker gave anything for {self.timeout_seconds:g} s" if late else said
                raise WorkerLost(
                    f"loading samples: {why}. data.workers=0 loads in the rank itself and shows where; a machine out "
                    f"of memory kills workers too: try fewer. They may take half of runtime.timeout_seconds"
                ) from error


@contextmanager
def _begun(loader: Iterable[Batch | DataError]) -> Iterator[Iterator[Batch | DataError]]:
    """Without torch's handler, which raises the loss of a worker wherever the rank happens to be: in the midst of a
    message to the others, say, who then never hear of it. `next` finds it too."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    read = iter(loader)
    if is_main_thread:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield read
    finally:
        if is_main_thread:
            signal.signal(signal.SIGCHLD, handler)


def _end(read: object, workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """At once, so that an error reaches the other ranks before they give up: DataLoader itself waits for a worker that
    is stuck, and for ever where it was stopped."""
    _kill(workers)
    getattr(read, "_shutdown_workers", lambda: None)()  # signs them off; deleting `read` would, but errors keep it


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _begin_worker(_: int) -> None:
    """A signal to stop is for the rank, which goes on until its step is done.

    SLURM sends it to every process of a job, as systemd does: to the workers, and to the torch_shm_manager that each of
    them starts, which holds what was read and inherits what is ignored. A rank crashes where one of these is gone.
    """
    guard_streams()  # a forked one has them already
    # The default hands a batch over with the worker's help: a rank would wait without limit for one that was stopped.
    cast(Any, torch.multiprocessing).set_sharing_strategy("file_system")
    for name in STOP_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
