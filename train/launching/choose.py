"""How many ranks, and on what."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from train.errors import counted, print_error
from train.launching.arguments import IS_CLONE, Arguments, LaunchRefused
from train.launching.launcher_file import LauncherFile, setting

PROGRAM = "./launch.sh" if IS_CLONE else "python -m train.launch"


@dataclass(frozen=True)
class Ranks:
    number: int | None  # None: accelerate finds it in the file
    gpus: int
    machines: int
    file_decides: bool


@dataclass(frozen=True)
class Asked:
    number: int | None
    by: str


def choose(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> Ranks:
    """Says aloud what it chose, and what it passed over."""
    asked = _asked(arguments, file, environment)
    on_cpu = _cpu_asked(arguments, file, environment)
    gpus = 0 if on_cpu else count_gpus()
    machines = int(setting("num_machines", arguments, file) or 1)
    # Several machines, or GPUs chosen by name: the file has thought about numbers, only an explicit one overrides it.
    if machines != 1 or file.names_gpus:
        number = asked.number or file.get("num_processes")
        if machines != 1:
            number = asked.number or machines * max(gpus, 1)
        print_error(f"launch: {_counted(number, 'rank')} on {_counted(machines, 'machine')} ({file.path})")
        return Ranks(number, gpus, machines, file_decides=True)
    if gpus == 0:
        number = asked.number or 1
        why = f"as {on_cpu} says" if on_cpu else "no GPU visible"
        more = "" if asked.number else "; NPROC=2 for more"
        print_error(f"launch: {why}: {_counted(number, 'rank')} on the CPU{more}")
    elif (asked.number or 1) > gpus:
        raise LaunchRefused(
            f"launch: more ranks than GPUs\n  got:  {asked.by}={asked.number}, {_counted(gpus, 'GPU')} visible\n"
            f"  why:  each rank needs a GPU of its own\n  type: NPROC={gpus} {PROGRAM}   "
            f"(or ACCELERATE_USE_CPU=true before NPROC={asked.number}: ranks on the CPU)"
        )
    else:
        number = asked.number or gpus
        print_error(f"launch: {_counted(gpus, 'GPU')} visible, {_counted(number, 'rank')}")
    return Ranks(number, gpus, machines, file_decides=False)


def _asked(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> Asked:
    """A flag comes before NPROC, and that before the user's own launcher file."""
    ways = {
        "--num_processes": arguments.flag("num_processes"),
        "NPROC": environment.get("NPROC"),
        f"num_processes of {file.path}": file.get("num_processes") if file.users_own else None,
    }
    stated = {by: str(value) for by, value in ways.items() if value not in (None, "")}
    if not stated:
        return Asked(None, "")
    by, value = next(iter(stated.items()))
    if not re.fullmatch("[1-9][0-9]*", value):
        raise LaunchRefused(
            f"launch: {by} is the number of ranks\n  got:  {by}={value}\n"
            f"  why:  it has to be a whole number, 1 or more\n  type: NPROC=2 {PROGRAM}"
        )
    for other, passed_over in stated.items():
        if passed_over != value:
            print_error(f"launch: {by}={value} overrides {other}={passed_over}")
    return Asked(int(value), by)


def _cpu_asked(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> str:
    """What says so; empty where nothing does."""
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes"):
        return "ACCELERATE_USE_CPU"
    if arguments.flag("cpu") is not None:
        return "--cpu"
    if file.get("use_cpu") in (True, "true") or file.get("distributed_type") == "MULTI_CPU":
        return str(file.path)
    return ""


def count_gpus() -> int:
    """torch knows best what it can use (CUDA_VISIBLE_DEVICES, MIG, a CPU build of torch).

    Asking it costs an import, so it is asked only where the machine seems to have a GPU.
    """
    if not (shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()):
        return 0
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False, env=os.environ)
    return int(done.stdout or 0)


def _counted(number: int | None, what: str) -> str:
    return counted(number, what) if number else f"? {what}s"
