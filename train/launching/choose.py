"""How many ranks, and on what."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.errors import counted, print_error
from train.installation import LAUNCH
from train.launching.arguments import Arguments, LaunchRefused
from train.launching.gpus import Seen, ask_torch, find_trouble, refusal
from train.launching.launcher_file import LauncherFile, setting
from train.launching.torch_builds import look_at_machine


@dataclass(frozen=True)
class Ranks:
    number: int  # on all machines together
    gpus: int  # of this machine
    machines: int
    gpu_ids: str = ""  # those that were named


@dataclass(frozen=True)
class Asked:
    number: int | None
    by: str


def choose(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> Ranks:
    """Says aloud what it chose, and what it passed over."""
    asked = _asked(arguments, file, environment)
    on_cpu = _cpu_asked(arguments, file, environment)
    named = "" if on_cpu else _gpus_named(arguments, file)
    visible = named or environment.get("CUDA_VISIBLE_DEVICES")
    seen = Seen() if on_cpu else ask_torch(named)
    gpus = len(seen.gpus)
    trouble = None if on_cpu else find_trouble(seen, visible)
    if trouble and arguments.trains:  # the doctor finds it too, and more; a plan needs no GPU
        raise LaunchRefused(f"launch: {refusal(trouble)}")
    machines = int(setting("num_machines", arguments, file) or 1)
    if gpus == 0 and not on_cpu:
        _check_no_gpu_needed(named, file)
    number = asked.number or machines * max(gpus, 1)
    if number % machines:
        raise LaunchRefused(
            f"launch: the ranks of all machines together must be a multiple of the machines\n"
            f"  got:  {asked.by}={number}, {machines} machines\n"
            "  why:  accelerate starts as many ranks on each\n  set:  "
            f"NPROC={number - number % machines or machines}"
        )
    if gpus and number > gpus * machines:
        raise _too_many(asked, seen, named, machines)
    for note in _of_mig(seen, visible or ""):
        print_error(f"launch: {note}")
    print_error(
        "launch: "
        f"{_told(gpus, named, on_cpu)}{counted(number, 'rank')}{_where(machines, gpus, asked)}"
    )
    return Ranks(number=number, gpus=gpus, machines=machines, gpu_ids=named)


def _too_many(asked: Asked, seen: Seen, named: str, machines: int) -> LaunchRefused:
    gpus = len(seen.gpus)
    mig = any(gpu.is_mig for gpu in seen.gpus)
    why = (
        "a process opens one MIG instance only, and NCCL joins none"
        if mig
        else "each rank needs a GPU of its own"
    )
    return LaunchRefused(
        f"launch: more ranks than GPUs\n  got:  {asked.by}={asked.number}, {_gpus(gpus, named)}\n"
        f"  why:  {why}\n  run:  NPROC={gpus * machines} {LAUNCH}   "
        f"(or ACCELERATE_USE_CPU=true before NPROC={asked.number}: ranks on the CPU)"
    )


def _of_mig(seen: Seen, visible: str) -> list[str]:
    """CUDA opens one instance for a process, the first; NCCL takes two of one card for the same
    card.
    """
    if not any(gpu.is_mig for gpu in seen.gpus):
        return []
    number = (
        len(visible.split(",")) if visible.startswith("MIG-") else look_at_machine().mig_instances
    )
    if number < 2:
        return []
    return [
        f"of {number} MIG instances a process opens the first alone. A run on another: "
        f"CUDA_VISIBLE_DEVICES=MIG-... {LAUNCH}; one run on all: take MIG away, or make one "
        "larger instance"
    ]


def _told(gpus: int, named: str, on_cpu: str) -> str:
    if gpus:
        return f"{_gpus(gpus, named)}, "
    if on_cpu:
        return f"as {on_cpu} says: "
    return "no GPU visible: "


def _where(machines: int, gpus: int, asked: Asked) -> str:
    words = []
    if machines > 1:
        words.append(f" on {machines} machines")
    if not gpus:
        words.append(" on the CPU")
    if not gpus and not asked.number:
        words.append("; NPROC=2 for more")
    return "".join(words)


def _gpus(number: int, named: str) -> str:
    return f"{counted(number, 'GPU')} " + (f"of gpu_ids {named}" if named else "visible")


def _gpus_named(arguments: Arguments, file: LauncherFile) -> str:
    ids = setting("gpu_ids", arguments, file) or "all"
    return "" if ids == "all" else ids


def _check_no_gpu_needed(named: str, file: LauncherFile) -> None:
    """A file that is about GPUs would train on the CPU."""
    asks = f"gpu_ids: {named}" if named else "distributed_type: MULTI_GPU"
    if named or (file.users_own and file.get("distributed_type") == "MULTI_GPU"):
        raise LaunchRefused(
            f"launch: no GPU is visible here\n  got:  {asks} ({file.path})\n"
            f"  why:  the ranks would train on the CPU\n"
            f"  run:  nvidia-smi   (or ACCELERATE_USE_CPU=true before {LAUNCH}: ranks on the CPU)"
        )


def _asked(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> Asked:
    """A flag comes before NPROC, and that before the user's own launcher file."""
    ways = {
        "--num_processes": arguments.flag("num_processes"),
        "NPROC": environment.get("NPROC"),
        f"num_processes of {file.path}": file.get("num_processes") if file.users_own else None,
    }
    stated = {by: str(value) for by, value in ways.items() if value not in (None, "", -1, "-1")}
    if not stated:
        return Asked(None, "")
    by, value = next(iter(stated.items()))
    if not re.fullmatch("[1-9][0-9]*", value):
        raise LaunchRefused(
            f"launch: {by} is the number of ranks\n  got:  {by}={value}\n"
            f"  why:  it has to be a whole number, 1 or more\n  run:  NPROC=2 {LAUNCH}"
        )
    for other, passed_over in stated.items():
        if passed_over != value:
            print_error(f"launch: {by}={value} overrides {other}={passed_over}")
    return Asked(int(value), by)


def _cpu_asked(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> str:
    """What says so; empty where nothing does."""
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        return "ACCELERATE_USE_CPU"
    if arguments.flag("cpu") is not None:
        return "--cpu"
    if file.get("use_cpu") in (True, "true") or file.get("distributed_type") == "MULTI_CPU":
        return str(file.path)
    return ""
