"""The machines of a job and which of them this is: by flags, else SLURM, else the launcher file."""

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
    """From so many machines on the ranks are started, and again when one comes or is lost."""
    rank: int = 0
    head: str = ""
    """The host name or address of machine 0."""
    port: int = 0
    """Of torch's store on the head. The launches meet at the next one."""
    job: str = ""
    backend: str = "static"
    conf: str = ""
    words: str = ""
    """A digest of the command line, which is the same on all machines."""

    @property
    def is_elastic(self) -> bool:
        return self.least < self.number

    @property
    def meeting_port(self) -> int:
        return self.port + 1

    def among(self, arguments: Arguments) -> Arguments:
        """`arguments` with what is known of this machine as flags of accelerate."""
        # On several machines all are stated anew. nnodes and rdzv_id are torchrun's: accelerate has
        # no such flags, and they travel as variables.
        replaced = FLAGS if self.number > 1 else ("nnodes", "rdzv_id")
        return replace(arguments, flags=[*arguments.without(replaced), *self._flags()])

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
        if self.is_elastic:  # accelerate has no flag for it: torchrun reads PET_NNODES
            stated = {"num_machines": 1, "rdzv_backend": self.backend}
        conf = [self.conf] if self.conf else []
        if self.backend == "c10d":
            # Else torch guesses from host names which machine has to hold the store.
            conf.insert(0, f"is_host={int(self.rank == 0)}")
        if conf:
            stated["rdzv_conf"] = ",".join(conf)
        flags = []
        for name, value in stated.items():
            flags += [f"--{name}", str(value)]
        return flags

    def variables(self) -> dict[str, str]:
        """For torchrun, what accelerate has no flag for."""
        if self.number == 1:
            return {}
        # Without an id of its own, a machine of another job that reaches this port is taken for one
        # of this job.
        variables = {"PET_RDZV_ID": self.job}
        if self.backend == "c10d":
            variables["PET_RDZV_ENDPOINT"] = f"{self.head}:{self.port}"
        if self.is_elastic:
            variables["PET_NNODES"] = f"{self.least}:{self.number}"
            variables["ISOBATCH_WORLD_SIZE"] = ""  # not known yet
            # A store for each start. A shared one tells starts apart by the restarts that an agent
            # has counted (distributed.ranks), and the agent of a machine that came later has
            # counted fewer.
            variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        return variables


def find_machines(
    arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]
) -> Machines:
    """Raises LaunchRefused where the number of this machine, or the first one, is not stated."""
    # A flag overrides SLURM, and both override the launcher file.
    settings = _of_file(file) | _of_slurm(environment) | _of_flags(arguments)
    number = settings.get("nnodes") or settings.get("num_machines") or "1"
    least, most = _range(number)
    if most == 1:
        return Machines()
    rank = _rank(settings.get("machine_rank", ""), most)
    head = settings.get("main_process_ip", "")
    if not head:
        raise _refused(
            "where is machine 0?",
            "no --main_process_ip",
            "the machines meet there",
            "--main_process_ip HOST",
        )
    # Machine 0 compares it: a machine with another command line would train something else.
    words = _digest(arguments)
    job = _job(settings.get("rdzv_id"), arguments, words)
    backend = settings.get("rdzv_backend", "static")
    if least < most:
        backend = "c10d"  # torch's static rendezvous has a fixed number of machines
        _check_restarts(arguments, number)
    machines = Machines(
        number=most,
        least=least,
        rank=rank,
        head=head,
        port=_port(settings.get("main_process_port", "0"), job),
        job=job,
        backend=backend,
        conf=settings.get("rdzv_conf", ""),
        words=words,
    )
    print_error(
        f"launch: machine {rank} of {number}; job {job}, machine 0 is {head}, ports "
        f"{machines.port} and {machines.meeting_port}"
    )
    return machines


def _of_file(file: LauncherFile) -> dict[str, str]:
    if not file.users_own:
        return {}
    return {name: str(file.get(name)) for name in FLAGS if file.get(name) is not None}


def _range(number: str) -> tuple[int, int]:
    """The least and the largest number of machines, of `2` or `1:3`."""
    match = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", number)
    if match is not None:
        least = int(match[1])
        most = int(match[2] or least)
        if least <= most:
            return least, most
    raise _refused(
        f"how many machines is {number}?",
        number,
        "it is a number, or LEAST:MOST",
        "--num_machines 2",
    )


def _rank(text: str, machines: int) -> int:
    if text.isdecimal() and int(text) < machines:
        return int(text)
    raise _refused(
        f"which of the {machines} machines is this?",
        f"--machine_rank {text}" if text else "no --machine_rank",
        f"each has its own: 0 to {machines - 1}",
        "--machine_rank 0",
    )


def _digest(arguments: Arguments) -> str:
    # No word holds a null byte, so two command lines never make one text.
    words = "\0".join([arguments.loop, arguments.config, *arguments.words])
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def _job(stated: str | None, arguments: Arguments, digest: str) -> str:
    """A name that all machines of the job find by themselves."""
    stem = re.sub(r"[^\w.-]", "_", Path(arguments.config).stem)
    job = stated or f"{stem}-{digest}"
    if re.fullmatch(r"[\w.-]+", job):
        return job
    raise _refused(
        "--rdzv_id is the name of the job",
        job,
        "letters, digits, . _ - only",
        "--rdzv_id my-job",
    )


def _of_flags(arguments: Arguments) -> dict[str, str]:
    flags = {name: arguments.flag(name) for name in FLAGS}
    stated = {name: value for name, value in flags.items() if value is not None}
    if "num_machines" in stated:  # later than what SLURM says
        stated.setdefault("nnodes", stated["num_machines"])
    return stated


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Under srun with one task on each of several nodes.

    A trial of `wandb agent` runs on one machine, whatever the job has.
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
            f"  run:  srun --ntasks-per-node=1 {LAUNCH}"
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
    # From the job, so that its machines find the same port by themselves, and two jobs on one node
    # do not meet.
    slurm = re.fullmatch(r"slurm-(\d+)\.(\d+)", job)
    if slurm:
        # Jobs that run at the same time have numbers near each other, and so have steps.
        number = int(slurm[1]) + 97 * int(slurm[2])
    else:
        number = zlib.crc32(job.encode())
    return FIRST_PORT + 2 * (number % PORTS)


def _check_restarts(arguments: Arguments, numbers: str) -> None:
    if not arguments.flag("max_restarts"):
        why = "without it, a machine that is lost ends the run on the others too"
        raise _refused(f"--nnodes {numbers} needs --max_restarts", "none", why, "--max_restarts 10")


def _refused(what: str, got: str, why: str, flags: str) -> LaunchRefused:
    return LaunchRefused(
        f"launch: {what}\n  got:  {got}\n  why:  {why}\n  run:  {LAUNCH} ... -- {flags} ..."
    )
