"""Steps of a stream on the ranks of a machine: the first of them reads, and sends each its part.

Over a Unix socket in a folder that only this user can enter. Ranks find it by the environment that
their launcher gives to all of them, and by how many streams they have opened: all open the same
ones in the same order.
"""

import hashlib
import itertools
import os
import pickle
import queue
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from train.batch import BatchPlan, divide
from train.distributed import ranks
from train.errors import RankFailed

AHEAD = 2  # steps that wait for a rank which has not taken them
POLL_SECONDS = 0.5  # between two looks whether there is still something to wait for
MEET_SECONDS = 300  # for the ranks of a machine to open a stream
CONNECT_SECONDS = 0.05  # between two attempts
# How long a rank that reads waits for its threads to send a step: else they wait for Python's lock,
# 5 ms each time.
SENT_SECONDS = 0.02
ERROR_SECONDS = 10  # for an error to reach the other ranks before this one ends

JOB_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "ISOBATCH_ATTEMPT",
    "TORCHELASTIC_RESTART_COUNT",
)
"""The same on the ranks of a job, and on those of no other that runs on the machine."""

LEFT = "the rank that reads the stream for all ranks of this machine has left: see its own error"

_OPENED = itertools.count()


class Step(NamedTuple):
    """All samples of a step, over all ranks."""

    epoch: int
    seen: int  # samples, before the step
    start: int  # position of its first sample in the epoch
    last_of_epoch: bool
    samples: pa.Table


class Part(NamedTuple):
    """What one rank needs of a step."""

    epoch: int
    seen: int
    start: int
    last_of_epoch: bool
    of_step: int  # samples, over all ranks
    first: int  # where this rank's samples begin, counted from the first of the step
    sizes: tuple[int, ...]  # of its micro-batches
    filler: pa.Table  # the first sample of the step
    rows: pa.Table  # this rank's samples


def part_of(step: Step, plan: BatchPlan, rank: int) -> Part:
    count = step.samples.num_rows
    first, sizes = divide(plan.at(step.seen), count, rank)
    return Part(
        epoch=step.epoch,
        seen=step.seen,
        start=step.start,
        last_of_epoch=step.last_of_epoch,
        of_step=count,
        first=first,
        sizes=sizes,
        filler=step.samples.slice(0, 1),
        rows=step.samples.slice(first, sum(sizes)),
    )


def parts_of_rank(steps: Iterator[Step], plan: BatchPlan, rank: int) -> Iterator[Part]:
    """This rank's part of each of `steps`, which only the first rank of each machine reads.

    An error of `steps` is raised on all ranks of the machine. Raises RankFailed where the one that
    reads is gone.
    """
    # By the launcher's environment: ranks on other machines cannot be reached by a Unix socket.
    others = ranks.launched_local_world_size() - 1
    # Not where the plan is of other ranks than were launched: nobody would receive.
    is_launched = plan.world_size == ranks.launched_world_size() and rank == ranks.launched_rank()
    if not others or not is_launched:
        for step in steps:
            yield part_of(step, plan, rank)
        return
    # Counted by all ranks, also by the one that reads: a stream has the same number on each.
    address = _address(next(_OPENED))
    if ranks.launched_local_rank():
        yield from _received(address, rank)
        return
    handout = _Handout(address, plan, others)
    try:
        for step in steps:
            handout.give(step)
            yield part_of(step, plan, rank)
    except Exception as error:
        handout.fail(error)
        raise
    finally:
        handout.over.set()


class _Receiver:
    """A rank that the steps are sent to."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[Step | Exception] = queue.Queue(AHEAD)
        self.has_left = threading.Event()

    def put(self, step: Step | Exception) -> None:
        """Waits while it has enough; one that has left reports itself why."""
        while not self.has_left.is_set():
            with suppress(queue.Full):
                self.waiting.put(step, timeout=POLL_SECONDS)
                return

    def wait_until_sent(self) -> None:
        """SENT_SECONDS at most."""
        with self.waiting.all_tasks_done:
            if self.waiting.unfinished_tasks:
                self.waiting.all_tasks_done.wait(SENT_SECONDS)


class _Handout:
    """On the rank that reads.

    A thread for each other rank sends: to wait for one here could be to wait for each other, where
    that one waits for this rank in a reduction.
    """

    def __init__(self, address: Path, plan: BatchPlan, others: int) -> None:
        self.over = threading.Event()
        self._plan = plan
        self._receivers = [_Receiver() for _ in range(others)]
        # Of a rank that was killed: bind refuses a name that is there.
        address.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(address))
        listening.listen(others)
        listening.settimeout(POLL_SECONDS)
        _start_thread(self._meet, listening, address)

    def give(self, step: Step | Exception) -> None:
        for receiver in self._receivers:
            receiver.put(step)
        for receiver in self._receivers:
            receiver.wait_until_sent()

    def fail(self, error: Exception) -> None:
        """Every other rank gets the error, unless it is late."""
        self.give(error)
        for receiver in self._receivers:
            receiver.has_left.wait(ERROR_SECONDS)

    def _meet(self, listening: socket.socket, address: Path) -> None:
        """Which receiver is which rank does not matter: each sends its number first."""
        with listening:
            for receiver in self._receivers:
                connection = self._accept(listening)
                if connection is None:
                    break
                _start_thread(self._send, connection, receiver)
            address.unlink(missing_ok=True)

    def _accept(self, listening: socket.socket) -> "Connection[Any, Any] | None":
        while not self.over.is_set():
            with suppress(TimeoutError):
                accepted, _ = listening.accept()
                # Connection reads from the bare descriptor, which has to block.
                accepted.setblocking(True)
                return Connection(accepted.detach())
        return None

    def _send(self, connection: "Connection[Any, Any]", receiver: _Receiver) -> None:
        """All steps, to one rank; it may leave."""
        try:
            with closing(connection), suppress(OSError, EOFError):
                rank = connection.recv()
                for step in self._steps(receiver):
                    if isinstance(step, Exception):
                        connection.send(portable(step))
                        return
                    part = part_of(step, self._plan, rank)
                    # Tables in Arrow's format, which writes the rows of a slice alone.
                    connection.send(part._replace(filler=None, rows=None))
                    connection.send_bytes(_serialised(pa.concat_tables([part.filler, part.rows])))
                    receiver.waiting.task_done()
                connection.send(None)
        finally:
            receiver.has_left.set()

    def _steps(self, receiver: _Receiver) -> Iterator[Step | Exception]:
        """What is given, until this rank has read all that it needs."""
        while True:
            # Before the queue is looked at: what was given earlier is sent.
            is_over = self.over.is_set()
            try:
                step = receiver.waiting.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if is_over:
                    return
            else:
                yield step


def _start_thread(target: Callable[..., None], *arguments: Any) -> None:
    # Daemons: the process may end while one waits for a rank that never came.
    threading.Thread(target=target, args=arguments, name="handout", daemon=True).start()


def _received(address: Path, rank: int) -> Iterator[Part]:
    with closing(_connected(address)) as connection:
        connection.send(rank)
        while True:
            yield _next_of(connection)


def _next_of(connection: "Connection[Any, Any]") -> Part:
    try:
        while not connection.poll(POLL_SECONDS):
            pass  # the watchdog reports how long
        part = connection.recv()
        content = connection.recv_bytes() if isinstance(part, Part) else b""
    except (EOFError, OSError) as error:
        raise RankFailed(LEFT) from error
    if isinstance(part, Part):
        table = pa.ipc.open_stream(content).read_all()
        return part._replace(filler=table.slice(0, 1), rows=table.slice(1))
    raise RankFailed(LEFT) if part is None else part


def _connected(address: Path) -> "Connection[Any, Any]":
    for _ in range(round(MEET_SECONDS / CONNECT_SECONDS)):
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):  # the other is not that far yet
            # A socket whose attempt has failed cannot be used again.
            connecting.close()
            time.sleep(CONNECT_SECONDS)
        else:
            return Connection(connecting.detach())
    raise RankFailed(
        "the rank that reads the stream for the ranks of this machine has not begun within "
        f"{MEET_SECONDS} s, or has another temporary folder than {tempfile.gettempdir()} (TMPDIR): "
        "see its own error"
    )


def _address(number: int) -> Path:
    """Of the stream that was opened as the `number`th one."""
    job = [os.environ.get(name, "") for name in JOB_VARIABLES]
    name = hashlib.sha256("\n".join([*job, str(number)]).encode()).hexdigest()[:16]
    # The path of a socket may have some 100 characters.
    parent = tempfile.gettempdir()
    folder = Path(parent if len(parent) <= 60 else "/tmp") / f"isobatch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Others may have made it before, in a temporary folder that all users share.
    status = folder.lstat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_own or status.st_mode & 0o077:
        raise ranks.LaunchError(
            f"{folder} is not a folder of this user's alone: ranks of a machine would hand their "
            "samples to each other there. Remove it, or set TMPDIR to another folder"
        )
    return folder / name


def _serialised(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def portable(error: Exception) -> Exception:
    """The error as another process can raise it: of its kind, or of the nearest base class."""
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    for kind in type(error).__mro__:
        with suppress(Exception):
            return pickle.loads(pickle.dumps(kind(str(error))))
    return RuntimeError(str(error))
