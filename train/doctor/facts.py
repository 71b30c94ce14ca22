"""What one rank sees of its machine. Gathered here, checked elsewhere."""

import os
import resource
import shutil
import socket
import tempfile
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from train.distributed.accelerator import trains_on_cpu
from train.installation import IS_CLONE, ROOT
from train.launching.gpus import Seen, look_by_torch
from train.launching.torch_builds import Machine, look_at_machine
from train.report.environment import environment

VARIABLES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "CUDA_VISIBLE_DEVICES", "MASTER_")


@dataclass(frozen=True)
class Disk:
    path: str
    free_gib: float
    writable: bool


@dataclass(frozen=True)
class Gpu:
    name: str
    free_gib: float
    memory_gib: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    host: str = "here"
    rank: int = 0
    ranks_here: int = 1
    machines: int = 1
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    """Of pyproject.toml."""
    commit: str = ""
    seen: Seen = field(default_factory=Seen)
    """The GPUs that torch can use."""
    nccl: str = ""
    machine: Machine = field(default_factory=Machine)
    gpus: tuple[Gpu, ...] = ()
    on_cpu: bool = False
    """ACCELERATE_USE_CPU asks for it."""
    variables: dict[str, str] = field(default_factory=dict)
    resolved: str = ""
    """The address that this machine's own name leads to; empty where it leads nowhere."""
    interfaces: dict[str, str] = field(default_factory=dict)
    """Name to IPv4 address of those that are up, the loopback left out."""
    disks: dict[str, Disk] = field(default_factory=dict)
    shared_memory_gib: float | None = None
    open_files: int = -1
    """The limit; -1: none."""
    locked_memory_kib: int = -1
    infiniband: bool = False
    timeout_seconds: float = 1800


def gather(output_dir: str, timeout_seconds: float) -> Facts:
    # The versions that a run writes into environment.json, so that both name them alike.
    versions = environment([], "")
    # Out of the environment: the ranks have not met yet, and may not be able to.
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    seen = look_by_torch()
    return Facts(
        host=socket.gethostname(),
        rank=int(os.environ.get("RANK", "0")),
        ranks_here=ranks_here,
        # As if each machine had as many ranks as this one: nothing else says how many there are.
        machines=max(1, world_size // ranks_here),
        python=versions["python"],
        packages=versions["packages"],
        requirements=_requirements(),
        commit=versions.get("git", {}).get("commit") or "",
        seen=seen,
        nccl=versions.get("nccl") or "",
        machine=look_at_machine(),
        gpus=tuple(_gpu(index) for index in range(len(seen.gpus))),
        on_cpu=trains_on_cpu(),
        variables=_variables(),
        resolved=_resolved(),
        interfaces=_interfaces(),
        disks=_disks(output_dir),
        shared_memory_gib=_shared_memory_gib(),
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory_kib=_locked_memory_kib(),
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        timeout_seconds=timeout_seconds,
    )


def _variables() -> dict[str, str]:
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith(VARIABLES)}


def _requirements() -> tuple[str, ...]:
    """Empty for an installed package, whose requirements pip has checked."""
    # A clone is run without pip: nobody has looked at its requirements.
    if not IS_CLONE:
        return ()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


def _gpu(index: int) -> Gpu:
    card = torch.cuda.get_device_properties(index)
    free = card.total_memory
    # The query opens a context, which takes memory of that GPU: a rank queries its own only.
    if os.environ.get("LOCAL_RANK", str(index)) == str(index):
        free = torch.cuda.mem_get_info(index)[0]
    return Gpu(card.name, round(free / 2**30, 1), round(card.total_memory / 2**30, 1))


def _resolved() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _interfaces() -> dict[str, str]:
    states = psutil.net_if_stats()
    interfaces = {}
    for name, addresses in psutil.net_if_addrs().items():
        ipv4 = [each.address for each in addresses if each.family == socket.AF_INET]
        # gloo and NCCL are pointed at an interface by its name (GLOO_SOCKET_IFNAME).
        if ipv4 and states[name].isup and not ipv4[0].startswith("127."):
            interfaces[name] = ipv4[0]
    return interfaces


def _disks(output_dir: str) -> dict[str, Disk]:
    cache = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    folders: dict[str, Any] = {
        "output_dir": output_dir,
        "the cache of Hugging Face": os.environ.get("HF_DATASETS_CACHE") or cache,
        "the temporary folder": tempfile.gettempdir(),
    }
    return {name: _disk(Path(folder)) for name, folder in folders.items()}


def _disk(path: Path) -> Disk:
    """Of a folder that may not exist yet."""
    # The nearest folder that exists: output_dir is made by the run, on the disk of that one.
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return Disk(str(path), _free_gib(existing), _can_write(existing))


def _can_write(folder: Path) -> bool:
    """By writing: neither root's rights nor a read-only file system can be read off a mode."""
    with suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def _free_gib(path: Path) -> float:
    return round(shutil.disk_usage(path).free / 2**30, 2)


def _shared_memory_gib() -> float | None:
    folder = Path("/dev/shm")
    return _free_gib(folder) if folder.exists() else None


def _locked_memory_kib() -> int:
    """-1: no limit."""
    limit = _limit(resource.RLIMIT_MEMLOCK)
    return limit // 1024 if limit >= 0 else -1


def _limit(kind: int) -> int:
    """-1: none."""
    soft = resource.getrlimit(kind)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft
