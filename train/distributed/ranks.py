"""The ranks of a run and their collectives. No other module calls torch.distributed for them."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from torch.distributed.rendezvous import rendezvous

from train.distributed.alone import Alone
from train.distributed.board import Board, next_start
from train.distributed.pulse import Pulse
from train.errors import RankFailed, UserError, raisable
from train.installation import LAUNCH, LAUNCH_NAME

T = TypeVar("T")


class LaunchError(UserError):
    """The launcher started other ranks than requested, or than the config says."""


SETTLE_SECONDS = 30
YIELD_SECONDS = 2.0
FAR = timedelta(days=100)

_KEPT: list[object] = []
"""Process groups, kept until the process ends.

Where one is destroyed earlier (with the model that DDP wraps), gloo joins its threads while it
holds the GIL, for which such a thread may be waiting: a deadlock (torch 2.13).
"""


def launched_world_size() -> int:
    """The ranks that the launcher started; known before they connect."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def asked_world_size() -> int:
    """The ranks of the run: those that the launcher started, or that launch.sh would start."""
    return max(launched_world_size(), int(os.environ.get("ISOBATCH_WORLD_SIZE") or 1))


def launched_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched_local_rank() -> int:
    """Among the ranks that share this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched_local_world_size() -> int:
    """The ranks that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_world_size(actual: int) -> None:
    """Raise LaunchError where the ranks that met are not as many as requested.

    `accelerate launch` with several processes on a CPU can start one, or several that each believe
    to be alone: a run would then train with another effective batch than it states.
    """
    requested = {
        "WORLD_SIZE (from the launcher)": launched_world_size(),
        # An elastic job sets it to nothing: its size is not known when it starts.
        f"ISOBATCH_WORLD_SIZE (from {LAUNCH_NAME})": int(
            os.environ.get("ISOBATCH_WORLD_SIZE") or actual
        ),
    }
    for name, number in requested.items():
        if number != actual:
            raise LaunchError(
                f"{number} ranks were asked for by {name}, but {actual} met. On a CPU: "
                f"NPROC={number} {LAUNCH} ... (or ACCELERATE_USE_CPU=true accelerate launch "
                f"--multi_gpu --num_processes {number} ...)"
            )


def yield_to_failed_rank(error: RuntimeError) -> None:
    """Wait a moment where another rank failed first, so that the launcher reports that one.

    torchrun polls every 0.1 s, and names the first rank that has left; of two at once the lower.
    """
    if lost_rank(error) or isinstance(error, RankFailed):
        time.sleep(YIELD_SECONDS)


def lost_rank(error: BaseException | None) -> bool:
    """Whether `error`, or a cause of it, means that another rank is gone."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        # gloo raises plain RuntimeErrors. Only their text tells them from others.
        if isinstance(error, RuntimeError) and "gloo" in str(error):
            return True
        error = error.__cause__
    return False


def meet_after_restart(timeout_seconds: float) -> None:
    """After a restart by the launcher: connect under keys of this attempt.

    The launcher's store still holds the addresses of the earlier ranks. torch 2.13 reads them under
    the same keys, so the first rank to start would wait for a connection to a process that is gone.
    accelerate uses this process group.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or launched_world_size() == 1 or not shares_store:
        return
    store, rank, world_size = next(rendezvous("env://"))
    on_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=dist.distributed_c10d.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


@dataclass(frozen=True)
class Sum:
    """A sum over the ranks that is still in progress."""

    values: torch.Tensor | list[float]
    """float64, on the CPU: the sum once the work is done. On one rank the values themselves."""
    work: dist.Work | None

    def wait(self) -> list[float]:
        if self.work is not None:
            self.work.wait()
        if isinstance(self.values, list):
            return self.values
        return cast(list[float], self.values.tolist())


class Ranks:
    """This rank among `world_size`, and collectives of a few numbers on the CPU.

    They use a separate gloo group, so that they cannot be mixed up with the gradients of a
    reduction that is in progress at the same time.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, timeout_seconds: float = 1800) -> None:
        self.rank = rank
        self.world_size = world_size
        self.is_main = rank == 0
        self._group: dist.ProcessGroup | None = None
        self._last_work: dist.Work | None = None  # of the sum started last
        self.pulse = Pulse()
        self.alone = Alone()
        self._start = next_start()
        if world_size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
            _KEPT.extend((group, dist.group.WORLD))

    def wait_for_watchdog(self) -> None:
        """Disable the groups' time-outs, which count frozen time: the watchdog replaces them."""
        if self._group:
            for group in (self._group, dist.group.WORLD):
                dist.distributed_c10d._set_pg_timeout(FAR, group)

    def start_sum(self, values: Sequence[float]) -> Sum:
        """Begin to sum `values` (float64) over the ranks; all get the same sums, bit for bit."""
        self.alone.messages += 1
        if self._group is None:
            return Sum([float(value) for value in values], None)
        # float64 holds any number of samples or tokens exactly.
        tensor = torch.tensor(values, dtype=torch.float64)
        self._last_work = dist.all_reduce(tensor, group=self._group, async_op=True)
        return Sum(tensor, self._last_work)

    def settle(self) -> None:
        """Wait for the sum started last; to be called before this rank exits.

        The weight of the next window is summed in a thread of gloo, and another rank may still wait
        for this rank's part.
        """
        if self._last_work is not None:
            with suppress(RuntimeError):  # another rank is gone
                self._last_work.wait(timedelta(seconds=SETTLE_SECONDS))

    def sum(self, values: Sequence[float]) -> list[float]:
        return self.start_sum(values).wait()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank."""
        self.alone.messages += 1
        if not self._group:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def from_main(self, decide: Callable[[], T]) -> T:
        """What `decide()` returns on rank 0, on every rank; so with an exception that it raises."""
        outcome: T | Exception | None = None
        if self.is_main:
            try:
                outcome = decide()
            except Exception as error:  # published: the others wait in gather
                outcome = error
        decided: T | Exception = self.gather(outcome)[0]
        if isinstance(decided, Exception):
            raise decided
        return decided

    def together(self, work: Callable[[], T]) -> T:
        """`work()` of this rank; where it raises on one rank, all raise, so that none waits."""
        outcome: T | None = None
        error: Exception | None = None
        try:
            outcome = work()
        except Exception as raised:
            error = raised
        # Its type and text, not the error: what a user's error holds may not be picklable.
        of_ranks = self.gather(None if error is None else (raisable(error), str(error)))
        if error is not None:
            # Its own error here, with its traceback.
            raise error
        for rank, other in enumerate(of_ranks):
            if other is not None:
                raise other[0](f"rank {rank}: {other[1]}")
        return cast(T, outcome)

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite each of `tensors` by its sum over the ranks (NCCL on GPUs).

        All reductions are in progress at once. On a GPU only the stream waits, not the host.
        """
        if self._group:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def first_of_node(self, work: Callable[[], T]) -> T:
        """`work()` on one rank of each machine first, then on the others, which use its cache."""
        is_first = launched_local_rank() == 0
        if self.world_size == 1:
            return work()
        # Two rounds, not a barrier between: where the first rank fails, the others raise its error
        # before they begin the same work.
        early = self.together(lambda: work() if is_first else None)
        late = self.together(lambda: None if is_first else work())
        return cast(T, early if is_first else late)

    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite `tensors`, on any device, by rank 0's."""
        if self._group:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def board(self) -> Board:
        """A connection to the ranks' key-value store, for the calling thread."""
        if self._group:
            default: Any = dist.distributed_c10d._get_default_store()
            # torch's stores are used by one thread each; a clone has a connection of its own.
            store = default.clone()
        else:
            store = torch._C._distributed_c10d.HashStore()
        # A store whose process is stopped answers nothing. It is asked again later, as a frozen job
        # may resume.
        store.set_timeout(timedelta(seconds=5))
        return Board(store, self.rank, self.world_size, self._start)

    def barrier(self) -> None:
        if self._group:
            dist.barrier(group=self._group)
