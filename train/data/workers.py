"""Processes that read samples ahead of the step that needs them, into shared memory."""

import math
import multiprocessing
import multiprocessing.process
import multiprocessing.util
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader

from train.distributed.ranks import launched_local_world_size
from train.errors import RunFailed, UserError, counted
from train.launching import STOP_SIGNALS
from train.redaction import guard_streams

AHEAD = 2  # requests that wait in each worker
POLL_SECONDS = 1.0  # between two looks whether all workers are there, while one is waited for

SHARED = Path("/dev/shm")
"""Where a worker leaves what it has read."""


class WorkerLost(RunFailed):
    """A process that loads samples was killed, or gave nothing for too long."""


class TooLittleShared(UserError):
    """What workers read ahead does not fit the shared memory."""


class Answers(Protocol):
    def __getitems__(self, request: Any) -> Any:
        """What DataLoader calls with each batch of indices; here these are any request."""
        ...


@contextmanager
def answered(
    requests: Iterable[Any], answers: Answers, workers: int, timeout_seconds: float
) -> Iterator[Iterator[Any]]:
    """What `answers` makes of each request, in order; raises WorkerLost after `timeout_seconds`.

    No workers: in this process, when it is asked for. Afterwards no worker is left, not even one
    that is stuck.
    """
    # DataLoader draws a seed for its workers, by default from the global generator, from which the
    # training draws. Nothing uses it: each sample has a seed of its own.
    generator = torch.Generator()
    # DataLoader takes these two with workers only.
    of_workers: dict[str, Any] = {}
    if workers:
        of_workers = {"prefetch_factor": AHEAD, "timeout": POLL_SECONDS}
    # A request takes the place of a batch of indices: DataLoader hands it to __getitems__ as it is.
    loader: Iterable[Any] = DataLoader(
        cast(Any, answers),
        batch_sampler=cast(Any, requests),
        collate_fn=cast(Any, _unchanged),
        num_workers=workers,
        worker_init_fn=_begin_worker,
        generator=generator,
        **of_workers,
    )
    # DataLoader has no public list of its workers: they are those that it adds.
    others = set(multiprocessing.active_children())
    with _without_child_signals(loader) as read:
        started = set(multiprocessing.active_children()) - others
        # Where a rank ends by an error, multiprocessing itself would ask by SIGTERM, and wait.
        at_exit = multiprocessing.util.Finalize(None, _kill, (started,), exitpriority=1)
        try:
            yield _watched(read, timeout_seconds)
        finally:
            _end(read, started)
            at_exit.cancel()


def check_shared_memory(workers: int, bytes_of_request: int) -> None:
    """Raises TooLittleShared: a worker without free shared memory is killed by a bus error."""
    if not workers or not SHARED.is_dir():
        return
    needed = shared_bytes(workers, bytes_of_request) * launched_local_world_size()
    free = shutil.disk_usage(SHARED).free
    if needed > free:
        per_worker = needed / workers
        fits = int(free / per_worker)
        raise TooLittleShared(
            f"{counted(workers, 'worker')} per rank read up to {needed / 2**20:,.0f} MiB ahead "
            f"into shared memory, and {SHARED} has {free / 2**20:,.0f} MiB free: a worker would be "
            f"killed. Set: data.workers={fits}, a smaller batch.micro, or start the container "
            f"with --shm-size={math.ceil(needed / 2**30)}g (or --ipc=host)"
        )


def shared_bytes(workers: int, bytes_of_request: int) -> int:
    """Of shared memory, for the workers of a rank: what waits in each, and the present request."""
    return bytes_of_request * (AHEAD * workers + 1) if workers else 0


def _watched(read: Iterator[Any], timeout_seconds: float) -> Iterator[Any]:
    """Raises WorkerLost."""
    polls = 0  # counted, not timed: a job that wakes from a long freeze has waited for one
    while True:
        polls += 1
        try:
            answer = next(read)
        except StopIteration:
            return
        except RuntimeError as error:
            message = str(error)
            if not message.startswith("DataLoader"):
                raise
            is_late = message.startswith("DataLoader timed out")
            # No worker is gone: it may be asked again.
            if is_late and polls * POLL_SECONDS < timeout_seconds:
                continue
            if is_late:
                message = f"no worker gave anything for {timeout_seconds:g} s"
            raise _lost(message) from error
        polls = 0
        yield answer


def _lost(message: str) -> WorkerLost:
    hint = ""
    if "us error" in message:  # a bus error
        hint = f" (is {SHARED} full? Start the container with --shm-size=8g)"
    return WorkerLost(
        f"loading samples: {message}{hint}. data.workers=0 loads in the rank itself and shows "
        "where; a machine out of memory kills workers too: try fewer. They may take half of "
        "runtime.timeout_seconds"
    )


@contextmanager
def _without_child_signals(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Iterate without torch's handler of SIGCHLD, which raises the loss of a worker anywhere.

    Such as in the midst of a message to the other ranks, who then never hear of it. `next` finds
    the loss too.
    """
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
    """At once, so that an error reaches the other ranks before they give up.

    DataLoader itself waits for a worker that is stuck, and without limit where it was stopped.
    """
    _kill(workers)
    # Deleting `read` would do it too, but the traceback of an error keeps a reference.
    getattr(read, "_shutdown_workers", lambda: None)()


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        # SIGKILL: a worker ignores the signals to stop, and one that is stuck would not see them.
        worker.kill()
        worker.join()


def _unchanged(answer: Any) -> Any:
    return answer


def _begin_worker(_: int) -> None:
    """Ignore signals to stop: they are for the rank, which finishes its step first.

    SLURM sends them to every process of a job, as systemd does: to the workers, and to the
    torch_shm_manager that each of them starts, which holds what was read and inherits what is
    ignored. A rank crashes where one of these is gone.
    """
    guard_streams()  # a forked worker has them already
    # torch's default strategy needs the worker for handing a batch over: a rank would wait without
    # limit for one that was stopped.
    cast(Any, torch.multiprocessing).set_sharing_strategy("file_system")
    for name in STOP_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
