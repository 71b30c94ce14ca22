"""Starts ranks (gloo, on the CPU) and launchers, waits for them with a wall limit, ends only what
it started itself.

A server imports torch once and every process is forked from it: a rank starts in 0.1 s instead of 5
to 30.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import free_port, rank_environment

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train.main", "torch._dynamo", "tests.campaigns.faults.ranks"])

LIMIT_SECONDS = 120
CLEARED = (
    "RANK",
    "WORLD_SIZE",
    "ISOBATCH_WORLD_SIZE",
    "ISOBATCH_ENDED",
    "ISOBATCH_ATTEMPT",
    "ISOBATCH_LAUNCHER_PID",
    "SLURM_JOB_ID",
)


class Hang(AssertionError):
    """A job was still there after its wall limit."""


@dataclass
class Job:
    """Processes that were started together."""

    processes: Sequence[BaseProcess]
    logs: Sequence[Path]
    begun: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = LIMIT_SECONDS) -> list[int]:
        """Exit codes, in order of the ranks; -n for one that signal n ended. Raises Hang, and
        leaves nothing behind.
        """
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [number for number, process in enumerate(self.processes) if process.is_alive()]
        for number in late:
            self.end(number)
        if late:
            raise Hang(f"{late} still there after {seconds:.0f} s\n{self.told()}")
        return [process.exitcode or 0 for process in self.processes]

    def end(self, number: int) -> None:
        """Kill one process and what it started."""
        try:
            started = psutil.Process(self.pid(number)).children(recursive=True)
        except psutil.NoSuchProcess:
            started = []
        self.processes[number].kill()
        for child in started:
            if child.is_running():
                child.kill()
        self.processes[number].join()

    def pid(self, number: int) -> int:
        return int(self.processes[number].pid or 0)

    def send(self, number: int, what: signal.Signals) -> bool:
        """Whether there was still somebody to send a signal to."""
        if not self.processes[number].is_alive():
            return False
        os.kill(self.pid(number), what)
        return True

    def told(self, number: int | None = None) -> str:
        """What one process, or all of them, printed."""
        logs = self.logs if number is None else [self.logs[number]]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())


def _enter(
    log: Path, environment: Mapping[str, str], function: Callable[..., int], args: tuple[Any, ...]
) -> None:
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    # of data workers: as in a rank that nobody has forked
    multiprocessing.set_start_method("fork", force=True)
    for name in CLEARED:
        os.environ.pop(name, None)
    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment})
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*args))


def start(
    here: Path,
    environments: Sequence[Mapping[str, str]],
    function: Callable[..., int],
    *args: Any,
    name: str = "rank",
) -> Job:
    """One process for each environment; its exit code is what `function(*args)` returns."""
    logs = [here / f"{name}-{number}.log" for number in range(len(environments))]
    processes = [
        _context.Process(target=_enter, args=(log, environment, function, args), daemon=False)
        for log, environment in zip(logs, environments, strict=True)
    ]
    for process in processes:
        process.start()
    return Job(processes, logs)


def start_ranks(
    here: Path, world_size: int, function: Callable[..., int], *args: Any, **environment: str
) -> Job:
    """As a launcher that restarts nothing; one rank is started without any, as `python -m
    train.accumulate` is.
    """
    common = {"FAULTS_RECORD": str(here), **environment}
    if world_size == 1:
        return start(here, [{"ACCELERATE_USE_CPU": "true", **common}], function, *args)
    port = free_port()
    ranks = [rank_environment(rank, world_size, port) | common for rank in range(world_size)]
    return start(here, ranks, function, *args)


def start_elastic(
    here: Path,
    world_size: int,
    restarts: int,
    function: Callable[..., int],
    *args: Any,
    **environment: str,
) -> Job:
    """torchrun's agent, which forks its ranks; it tells them how to end as launch.sh does."""
    environment |= {
        "FAULTS_RECORD": str(here),
        "ACCELERATE_USE_CPU": "true",
        "ISOBATCH_ENDED": str(here / "told.json"),
        "ISOBATCH_WORLD_SIZE": str(world_size),
    }
    return start(here, [environment], _agent, world_size, restarts, function, args, name="agent")


def _agent(
    world_size: int, restarts: int, function: Callable[..., int], args: tuple[Any, ...]
) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=f"faults-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="fork",
    )
    try:
        elastic_launch(config, _elastic_rank)(function, args)
    except (ChildFailedError, SignalException) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _elastic_rank(function: Callable[..., int], args: tuple[Any, ...]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # the agent's own were inherited
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        code = function(*args)
    except BaseException:
        traceback.print_exc()
    # A function that has returned waits for its agent's word, which an agent that was stopped never
    # gives.
    if code or "FAULTS_STOPPED_AGENT" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
