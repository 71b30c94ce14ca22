"""Steps of a stream on ranks that share a machine: the first of them reads, and hands each other
one its part.

Over a Unix socket in a folder that only this user can enter. Ranks find it by what their launcher
told all of them, and by how many streams they have opened: all open the same ones in the same
order.
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
from collections.abc import Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from train.batch import BatchPlan, divide
from train.distributed import ranks
from train.errors import RankFailed

AHEAD = 2  # steps that wait for a rank which has not taken them
LOOK_SECONDS = 0.5  # between two looks whether there is still something to wait for
MEET_SECONDS = 300  # for the ranks of a machine to open a stream
# for a step to be sent: else threads that send it wait for Python's lock, 5 ms each time
SENT_SECONDS = 0.02
ERROR_SECONDS = 10  # for an error to reach the other ranks before this one ends

JOB = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "ISOBATCH_ATTEMPT",
)
"""With the number of restarts: the same on the ranks of a job, and on those of no other that runs
on the machine.
"""

LEFT = "the rank that reads the stream for all ranks of this machine has left: see its own error"

_OPENED = itertools.count()


class Step(NamedTuple):
    """All samples of a step, over all ranks."""

    epoch: int
    seen: int  # samples, before the step
    start: int  # place of its first sample in the epoch
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
    filler, rows = step.samples.slice(0, 1), step.samples.slice(first, sum(sizes))
    return Part(
        step.epoch, step.seen, step.start, step.last_of_epoch, count, first, sizes, filler, rows
    )


def parts(steps: Iterator[Step], plan: BatchPlan, rank: int) -> Iterator[Part]:
    """This rank's part of each of `steps`, which are read on the first rank of each machine alone.

    An error of `steps` is raised on all ranks of the machine. Raises RankFailed where the one that
    reads is gone.
    """
    others = ranks.launched_local_world_size() - 1
    if (
        not others
        or plan.world_size != ranks.launched_world_size()
        or rank != ranks.launched_rank()
    ):
        for step in steps:
            yield part_of(step, plan, rank)
        return
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


class _Handout:
    """On the rank that reads. A thread for each other rank sends: to wait for one here could be to
    wait for each other, where that one waits for this rank in a reduction.
    """

    def __init__(self, address: Path, plan: BatchPlan, others: int) -> None:
        self.over = threading.Event()
        self._plan = plan
        self._waiting: list[queue.Queue[Step | Exception]] = [
            queue.Queue(AHEAD) for _ in range(others)
        ]
        self._ended = [threading.Event() for _ in range(others)]
        address.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(address))
        listening.listen(others)
        listening.settimeout(LOOK_SECONDS)
        threading.Thread(
            target=self._meet, args=(listening, address), name="handout", daemon=True
        ).start()

    def give(self, step: Step | Exception) -> None:
        for waiting, ended in zip(self._waiting, self._ended, strict=True):
            while not ended.is_set():  # one that has left says itself why
                with suppress(queue.Full):
                    waiting.put(step, timeout=LOOK_SECONDS)
                    break
        for waiting in self._waiting:
            with waiting.all_tasks_done:
                if waiting.unfinished_tasks:
                    waiting.all_tasks_done.wait(SENT_SECONDS)

    def fail(self, error: Exception) -> None:
        """Every other rank gets the error, unless it is late."""
        self.give(error)
        for ended in self._ended:
            ended.wait(ERROR_SECONDS)

    def _meet(self, listening: socket.socket, address: Path) -> None:
        with listening:
            for waiting, ended in zip(self._waiting, self._ended, strict=True):
                connection = self._accepted(listening)
                if connection is None:
                    break
                arguments = (connection, waiting, ended)
                threading.Thread(
                    target=self._send, args=arguments, name="handout", daemon=True
                ).start()
            address.unlink(missing_ok=True)

    def _accepted(self, listening: socket.socket) -> "Connection[Any, Any] | None":
        while not self.over.is_set():
            with suppress(TimeoutError):
                accepted, _ = listening.accept()
                accepted.setblocking(True)
                return Connection(accepted.detach())
        return None

    def _send(
        self,
        connection: "Connection[Any, Any]",
        waiting: "queue.Queue[Step | Exception]",
        ended: threading.Event,
    ) -> None:
        """All that is given, to one rank; it may leave."""
        try:
            with closing(connection), suppress(OSError, EOFError):
                rank = connection.recv()
                while (step := self._next(waiting)) is not None:
                    if isinstance(step, Exception):
                        connection.send(portable(step))
                        return
                    part = part_of(step, self._plan, rank)
                    connection.send(part._replace(filler=None, rows=None))
                    connection.send_bytes(_packed(pa.concat_tables([part.filler, part.rows])))
                    waiting.task_done()
                connection.send(None)
        finally:
            ended.set()

    def _next(self, waiting: "queue.Queue[Step | Exception]") -> Step | Exception | None:
        """None: there is no more."""
        while True:
            is_over = self.over.is_set()  # before the look: what was given earlier is sent
            with suppress(queue.Empty):
                return waiting.get(timeout=LOOK_SECONDS)
            if is_over:
                return None


def _received(address: Path, rank: int) -> Iterator[Part]:
    with closing(_connected(address)) as connection:
        connection.send(rank)
        while True:
            yield _next_of(connection)


def _next_of(connection: "Connection[Any, Any]") -> Part:
    try:
        while not connection.poll(LOOK_SECONDS):
            pass  # the watchdog says how long
        part = connection.recv()
        content = connection.recv_bytes() if isinstance(part, Part) else b""
    except (EOFError, OSError) as error:
        raise RankFailed(LEFT) from error
    if isinstance(part, Part):
        table = pa.ipc.open_stream(content).read_all()
        return part._replace(filler=table.slice(0, 1), rows=table.slice(1))
    raise RankFailed(LEFT) if part is None else part


def _connected(address: Path) -> "Connection[Any, Any]":
    wait = threading.Event()
    for _ in range(round(MEET_SECONDS / 0.05)):
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):  # the other is not that far yet
            connecting.close()
            wait.wait(0.05)
        else:
            return Connection(connecting.detach())
    raise RankFailed(
        "the rank that reads the stream for the ranks of this machine has not begun within "
        f"{MEET_SECONDS} s, or has another temporary folder than {tempfile.gettempdir()} (TMPDIR): "
        "see its own error"
    )


def _address(number: int) -> Path:
    said = [os.environ.get(name, "") for name in (*JOB, "TORCHELASTIC_RESTART_COUNT")]
    name = hashlib.sha256("\n".join([*said, str(number)]).encode()).hexdigest()[:16]
    # The path of a socket may have some 100 characters.
    parent = tempfile.gettempdir()
    folder = Path(parent if len(parent) <= 60 else "/tmp") / f"isobatch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ranks.LaunchError(
            f"{folder} is not a folder of this user's alone: ranks of a machine would hand their "
            "samples to each other there. Remove it, or set TMPDIR to another folder"
        )
    return folder / name


def _packed(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def portable(error: Exception) -> Exception:
    """The error as another process can raise it: its kind, or the nearest that takes a text, with
    its text.
    """
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    for kind in type(error).__mro__:
        with suppress(Exception):
            return pickle.loads(pickle.dumps(kind(str(error))))
    return RuntimeError(str(error))
