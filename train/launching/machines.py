"""The machines of a job, and which of them this one is: by flags, else by SLURM, else by the
launcher file.
"""

import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.errors import counted, print_error
from train.installation import LAUNCH
from train.launching.arguments import Arguments, LaunchRefused
from train.launching.launcher_file import LauncherFile

FIRST_PORT, PORTS = 15_000, 8_000
"""Two for each job, below those that a kernel gives away by itself (32,768 and up)."""
FLAGS = (
    "num_machines",
    "nnodes",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "rdzv_backend",
    "rdzv_conf",
    "rdzv_id",
)


@dataclass(frozen=True, kw_only=True)
class Machines:
    number: int = 1
    least: int = 1
    """With fewer than `number` the ranks are started too, and again whenever a machine comes or is
    lost.
    """
    rank: int = 0
    head: str = ""
    """The host name or address of machine 0."""
    port: int = 0
    """Of torch's store on the head. At the next one launches meet."""
    job: str = ""
    backend: str = "static"
    conf: str = ""
    words: str = ""
    """A digest of the command line, which is the same on all machines."""

    @property
    def is_elastic(self) -> bool:
        return self.least < self.number

    @property
    def door(self) -> int:
        return self.port + 1

    def among(self, arguments: Arguments) -> Arguments:
        """`arguments` with the place of this machine as accelerate's flags, wherever it
        was found.
        """
        given = arguments.without(FLAGS if self.number > 1 else ("nnodes", "rdzv_id"))
        return replace(arguments, flags=[*given, *self._flags()])

    def _flags(self) -> list[str]:
        if self.number == 1:
            return []
        stated: dict[str, Any] = {
            "num_machines": self.number,
            "machine_rank": self.rank,
            "main_process_ip": self.head,
            "main_process_port": self.port,
            "rdzv_backend": self.backend,
        }
        if self.is_elastic:  # accelerate does not know of it: torchrun is told by PET_NNODES
            stated = {"num_machines": 1, "rdzv_backend": self.backend}
        conf = self.conf
        if self.backend == "c10d":
            # Else torch guesses from host names which machine has to hold the store.
            conf = ",".join(filter(None, [f"is_host={int(self.rank == 0)}", conf]))
        if conf:
            stated["rdzv_conf"] = conf
        return [word for name, value in stated.items() for word in (f"--{name}", str(value))]

    def variables(self) -> dict[str, str]:
        """By which torchrun is told what accelerate has no flag for."""
        if self.number == 1:
            return {}
        # Without an id of its own, a machine of another job that reaches this port is taken for one
        # of this job.
        variables = {"PET_RDZV_ID": self.job}
        if self.backend == "c10d":
            variables["PET_RDZV_ENDPOINT"] = f"{self.head}:{self.port}"
        if self.is_elastic:
            variables["PET_NNODES"] = f"{self.least}:{self.number}"
            variables["ISOBATCH_WORLD_SIZE"] = ""  # nobody knows yet
            # A store for each start. A shared one tells starts apart by the restarts that an agent
            # has counted (distributed.ranks), and the agent of a machine that came later has
            # counted fewer.
            variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        return variables


def find_machines(
    arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]
) -> Machines:
    """Raises LaunchRefused where it is not known which machine this is, or where the
    first one is.
    """
    found = _of_slurm(environment) | _of_flags(arguments)
    if file.users_own:
        found = {name: str(file.get(name)) for name in FLAGS if file.get(name) is not None} | found
    by = found.get("nnodes") or found.get("num_machines") or "1"
    numbers = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", by)
    least, most = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (0, 0)
    if not 0 < least <= most:
        raise _refused(
            f"how many machines is {by}?", by, "it is a number, or LEAST:MOST", "--num_machines 2"
        )
    if most == 1:
        return Machines()
    rank = found.get("machine_rank", "")
    if not rank.isdecimal() or int(rank) >= most:
        got = f"--machine_rank {rank}" if rank else "no --machine_rank"
        raise _refused(
            f"which of the {most} machines is this?",
            got,
            f"each has its own: 0 to {most - 1}",
            "--machine_rank 0",
        )
    head = found.get("main_process_ip", "")
    if not head:
        raise _refused(
            "where is machine 0?",
            "no --main_process_ip",
            "the machines meet there",
            "--main_process_ip HOST",
        )
    words = hashlib.sha256(
        "\0".join([arguments.loop, arguments.config, *arguments.words]).encode()
    ).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]", "_", Path(arguments.config).stem)
    job = found.get("rdzv_id") or f"{stem}-{words}"
    if not re.fullmatch(r"[\w.-]+", job):
        raise _refused(
            "--rdzv_id is the name of the job",
            job,
            "letters, digits, . _ - only",
            "--rdzv_id my-job",
        )
    backend = found.get("rdzv_backend", "static")
    if least < most:
        backend = "c10d"
        _check_restarts(arguments, f"{least}:{most}")
    machines = Machines(
        number=most,
        least=least,
        rank=int(rank),
        head=head,
        port=_port(found.get("main_process_port", "0"), job),
        job=job,
        backend=backend,
        conf=found.get("rdzv_conf", ""),
        words=words,
    )
    print_error(
        f"launch: machine {rank} of {by}; job {job}, machine 0 is {head}, ports {machines.port} "
        f"and {machines.door}"
    )
    return machines


def _of_flags(arguments: Arguments) -> dict[str, str]:
    flags = {name: arguments.flag(name) for name in FLAGS}
    stated = {name: value for name, value in flags.items() if value is not None}
    if "num_machines" in stated:  # later than what SLURM says
        stated.setdefault("nnodes", stated["num_machines"])
    return stated


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Under srun with one task on each of several nodes. A trial of `wandb agent` is one machine's
    own.
    """
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or 1)
    if nodes == 1 or environment.get("WANDB_SWEEP_ID"):
        return {}
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or nodes)
    if tasks != nodes:
        raise LaunchRefused(
            f"launch: srun started {counted(tasks, 'task')} on {counted(nodes, 'node')}\n"
            f"  got:  SLURM_STEP_NUM_TASKS={tasks}, SLURM_STEP_NUM_NODES={nodes}\n"
            f"  why:  {LAUNCH} starts the ranks of a machine itself: one task on each node\n"
            f"  type: srun --ntasks-per-node=1 {LAUNCH}"
        )
    # The first of node[01-04,7],gpu3: what is in brackets is shortened to its first number.
    nodes_stated = environment.get("SLURM_STEP_NODELIST", "")
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes_stated).partition(",")[0]
    job = environment.get("SLURM_JOB_ID", "0")
    step = environment.get("SLURM_STEP_ID", "0")
    return {
        "nnodes": str(nodes),
        "machine_rank": environment.get("SLURM_NODEID", ""),
        "main_process_ip": first,
        "rdzv_id": f"slurm-{job}.{step}",
    }


def _port(stated: str, job: str) -> int:
    if stated not in ("", "0"):
        if stated.isdecimal() and int(stated) < 65_535:
            return int(stated)
        raise _refused(
            "which port?",
            f"--main_process_port {stated}",
            "it is 1 to 65534",
            "--main_process_port 29500",
        )
    slurm = re.fullmatch(r"slurm-(\d+)\.(\d+)", job)
    # Jobs that run at the same time have numbers near each other, and so have steps.
    number = int(slurm[1]) + 97 * int(slurm[2]) if slurm else zlib.crc32(job.encode())
    return FIRST_PORT + 2 * (number % PORTS)


def _check_restarts(arguments: Arguments, numbers: str) -> None:
    if not arguments.flag("max_restarts"):
        why = "without it, a machine that is lost ends the run on the others too"
        raise _refused(f"--nnodes {numbers} needs --max_restarts", "none", why, "--max_restarts 10")


def _refused(what: str, got: str, why: str, flags: str) -> LaunchRefused:
    return LaunchRefused(
        f"launch: {what}\n  got:  {got}\n  why:  {why}\n  type: {LAUNCH} ... -- {flags} ..."
    )
