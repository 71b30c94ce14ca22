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
    gpu_ids: str = ""  # those that a flag or the launcher file names


@dataclass(frozen=True)
class Request:
    """How many ranks were asked for; None where nothing says so."""

    number: int | None
    by: str
    """NPROC, a flag, or a key of a launcher file."""


def choose(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> Ranks:
    """Prints what it chose, and which settings it ignored. Raises LaunchRefused."""
    request = _requested_ranks(arguments, file, environment)
    on_cpu = _cpu_request(arguments, file, environment)
    gpu_ids = ""
    trouble = None
    seen = Seen()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # Whoever asks for the CPU hears nothing of GPUs, and does not wait for torch, whose import
    # takes seconds.
    if not on_cpu:
        gpu_ids = _requested_gpus(arguments, file)
        visible = gpu_ids or visible
        seen = ask_torch(gpu_ids)
        trouble = find_trouble(seen, visible)
    if trouble and arguments.trains:  # the doctor finds it too, and more; a plan needs no GPU
        raise LaunchRefused(f"launch: {refusal(trouble)}")
    gpus = len(seen.gpus)
    machines = int(setting("num_machines", arguments, file) or 1)
    if gpus == 0 and not on_cpu:
        _check_no_gpu_needed(gpu_ids, file)
    number = request.number or machines * max(gpus, 1)
    if number % machines:
        raise LaunchRefused(
            f"launch: the ranks of all machines together must be a multiple of the machines\n"
            f"  got:  {request.by}={number}, {machines} machines\n"
            "  why:  accelerate starts as many ranks on each\n  set:  "
            f"NPROC={number - number % machines or machines}"
        )
    if gpus and number > gpus * machines:
        raise _too_many(request, seen, gpu_ids, machines)
    for note in _notes_on_mig(seen, visible or ""):
        print_error(f"launch: {note}")
    devices = _devices(gpus, gpu_ids, on_cpu)
    where = _where(machines, gpus, request)
    print_error(f"launch: {devices}{counted(number, 'rank')}{where}")
    return Ranks(number=number, gpus=gpus, machines=machines, gpu_ids=gpu_ids)


def _too_many(request: Request, seen: Seen, gpu_ids: str, machines: int) -> LaunchRefused:
    gpus = len(seen.gpus)
    why = "each rank needs a GPU of its own"
    if any(gpu.is_mig for gpu in seen.gpus):
        why = "a process opens one MIG instance only, and NCCL joins none"
    return LaunchRefused(
        "launch: more ranks than GPUs\n"
        f"  got:  {request.by}={request.number}, {_gpus(gpus, gpu_ids)}\n"
        f"  why:  {why}\n"
        f"  run:  NPROC={gpus * machines} {LAUNCH}   "
        f"(or ACCELERATE_USE_CPU=true before NPROC={request.number}: ranks on the CPU)"
    )


def _notes_on_mig(seen: Seen, visible: str) -> list[str]:
    """CUDA opens the first instance only; NCCL takes two of one card for the same card."""
    if not any(gpu.is_mig for gpu in seen.gpus):
        return []
    if visible.startswith("MIG-"):
        number = len(visible.split(","))
    else:
        number = look_at_machine().mig_instances
    if number < 2:
        return []
    return [
        f"of {number} MIG instances a process opens the first alone. A run on another: "
        f"CUDA_VISIBLE_DEVICES=MIG-... {LAUNCH}; one run on all: take MIG away, or make one "
        "larger instance"
    ]


def _devices(gpus: int, gpu_ids: str, on_cpu: str) -> str:
    if gpus:
        return f"{_gpus(gpus, gpu_ids)}, "
    if on_cpu:
        return f"as {on_cpu} says: "
    return "no GPU visible: "


def _where(machines: int, gpus: int, request: Request) -> str:
    words = []
    if machines > 1:
        words.append(f" on {machines} machines")
    if not gpus:
        words.append(" on the CPU")
    if not gpus and not request.number:
        words.append("; NPROC=2 for more")
    return "".join(words)


def _gpus(number: int, gpu_ids: str) -> str:
    which = f"of gpu_ids {gpu_ids}" if gpu_ids else "visible"
    return f"{counted(number, 'GPU')} {which}"


def _requested_gpus(arguments: Arguments, file: LauncherFile) -> str:
    ids = setting("gpu_ids", arguments, file) or "all"
    return "" if ids == "all" else ids


def _check_no_gpu_needed(gpu_ids: str, file: LauncherFile) -> None:
    """With a file that is about GPUs, ranks would silently train on the CPU."""
    asks = f"gpu_ids: {gpu_ids}" if gpu_ids else "distributed_type: MULTI_GPU"
    if gpu_ids or (file.users_own and file.get("distributed_type") == "MULTI_GPU"):
        raise LaunchRefused(
            f"launch: no GPU is visible here\n  got:  {asks} ({file.path})\n"
            f"  why:  the ranks would train on the CPU\n"
            f"  run:  nvidia-smi   (or ACCELERATE_USE_CPU=true before {LAUNCH}: ranks on the CPU)"
        )


def _requested_ranks(
    arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]
) -> Request:
    """A flag comes before NPROC, and that before the user's own launcher file."""
    ways = {
        "--num_processes": arguments.flag("num_processes"),
        "NPROC": environment.get("NPROC"),
        f"num_processes of {file.path}": file.get("num_processes") if file.users_own else None,
    }
    stated = {by: str(value) for by, value in ways.items() if value not in (None, "", -1, "-1")}
    if not stated:
        return Request(None, "")
    by, value = next(iter(stated.items()))
    if not re.fullmatch("[1-9][0-9]*", value):
        raise LaunchRefused(
            f"launch: {by} is the number of ranks\n  got:  {by}={value}\n"
            f"  why:  it has to be a whole number, 1 or more\n  run:  NPROC=2 {LAUNCH}"
        )
    for other, overridden in stated.items():
        if overridden != value:
            print_error(f"launch: {by}={value} overrides {other}={overridden}")
    return Request(int(value), by)


def _cpu_request(arguments: Arguments, file: LauncherFile, environment: Mapping[str, str]) -> str:
    """What asks for the CPU; empty where nothing does."""
    # What accelerate takes for true (its str_to_bool), without importing it.
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "on", "t", "y"):
        return "ACCELERATE_USE_CPU"
    if arguments.flag("cpu") is not None:
        return "--cpu"
    if file.get("use_cpu") in (True, "true") or file.get("distributed_type") == "MULTI_CPU":
        return str(file.path)
    return ""
