"""The command that starts the ranks, and the variables that belong to it."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from train.errors import print_error
from train.installation import IS_CLONE, LAUNCH, LAUNCH_NAME, ROOT
from train.launching.arguments import Arguments, LaunchRefused
from train.launching.choose import Ranks
from train.launching.launcher_check import of_flags
from train.launching.launcher_file import DEFAULT, LauncherFile
from train.launching.sharding import is_sharding_flag, sharding_variables

TORCHRUN_FLAGS = ("--max_restarts", "--rdzv_", "--monitor_interval", "--log_dir", "--tee")
SET_BY_VARIABLES = ("cpu", "gpu_ids")
"""As flags, they would make accelerate start one rank, or refuse fewer than two GPUs."""


@dataclass(frozen=True)
class Command:
    words: list[str]
    variables: dict[str, str]

    def with_variables(self, more: Mapping[str, str]) -> "Command":
        return replace(self, variables={**self.variables, **more})

    def print(self, adds: bool) -> None:
        """A line to paste."""
        settings = [f"{name}={value}" for name, value in self.variables.items()]
        print(shlex.join(["env", *settings, *self.words]))
        if adds:
            added = "ISOBATCH_ATTEMPT, ISOBATCH_ENDED and ISOBATCH_LAUNCHER_PID"
            print(f"# {LAUNCH_NAME} adds {added} to it")


def build(arguments: Arguments, file: LauncherFile, ranks: Ranks, grace: int) -> Command:
    sharding = sharding_variables(arguments, file)
    if sharding and ranks.number == 1 and arguments.needs_ranks:
        print_error(
            "launch: FSDP divides the model among ranks, and there is one: it holds all. NPROC=2 "
            "for more"
        )
    variables = _variables(ranks, grace) | sharding
    if ranks.gpu_ids:
        variables["CUDA_VISIBLE_DEVICES"] = ranks.gpu_ids
    module = "train.config" if arguments.prints_config else f"train.{arguments.loop}"
    program = ["-m", module, arguments.config, *arguments.words]
    if arguments.plans_memory:
        program = ["-m", "train.plan", arguments.loop, arguments.config, *arguments.words]
    # A plan, or the config alone, needs no ranks, and so not accelerate's launcher.
    if not arguments.needs_ranks:
        return Command([sys.executable, *program], variables)
    if ranks.number == 1 and not file.get("enable_cpu_affinity") and _only_number(arguments):
        # accelerate's own launcher of one process costs 1.8 CPU seconds to set these.
        variables |= {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
        variables.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        return Command([sys.executable, *program], variables)
    return Command([sys.executable, *_accelerate(arguments, file, ranks), *program], variables)


def _accelerate(arguments: Arguments, file: LauncherFile, ranks: Ranks) -> list[str]:
    words = ["-m", "accelerate.commands.launch", "--config_file", str(DEFAULT)]
    if file.get("enable_cpu_affinity"):
        words.append("--enable_cpu_affinity")
    # Only torchrun knows the flags about restarts, rendezvous and logs, also where it starts one
    # rank.
    by_torchrun = ranks.number != 1
    torchrun_flags = [flag for flag in arguments.flags if _is_torchrun(flag)]
    if not by_torchrun and torchrun_flags:
        _check_lone_rank(torchrun_flags[0], arguments)
        # The number is left to the default file: accelerate refuses --multi_gpu beside
        # --num_processes 1.
        by_torchrun = True
    else:
        words += ["--num_processes", str(ranks.number)]
    if ranks.machines == 1:
        words += ["--main_process_port", "0"]  # a free one: two launches on one machine do not meet
    if by_torchrun:
        words.append("--multi_gpu")  # also on a CPU: with --cpu accelerate would start one rank
    elif ranks.gpus == 0:
        words.append("--cpu")  # accelerate overwrites ACCELERATE_USE_CPU for a single rank
    # FSDP's flags are not passed on: the ranks get them as variables (sharding.py).
    sharding = [each.key for each in of_flags(arguments.flags) if is_sharding_flag(each.key)]
    return words + arguments.without((*SET_BY_VARIABLES, *sharding))


def _only_number(arguments: Arguments) -> bool:
    """Whether no flag says more than how many ranks."""
    number = ("1", "--num_processes", "--num-processes", "--num_processes=1", "--num-processes=1")
    return all(flag in number for flag in arguments.without(SET_BY_VARIABLES))


def _is_torchrun(flag: str) -> bool:
    return ("--" + flag.removeprefix("--").replace("-", "_")).startswith(TORCHRUN_FLAGS)


def _check_lone_rank(flag: str, arguments: Arguments) -> None:
    """accelerate starts one rank by torchrun with --multi_gpu only, and refuses it beside a 1."""
    if arguments.flag("num_processes"):
        raise LaunchRefused(
            f"launch: {flag} for one rank needs another command\n"
            f"  got:  --num_processes 1, beside {flag}\n"
            "  why:  accelerate would start the rank without torchrun, which alone knows that "
            f"flag\n  run:  NPROC=1 {LAUNCH} ... -- {flag} ..."
        )


def _variables(ranks: Ranks, grace: int) -> dict[str, str]:
    # The current directory comes last: at the front, a train.py or a folder train/ there would hide
    # ours. An installed package is found anyway; at the front, its neighbours would hide modules of
    # Python.
    stated = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    clone = [str(ROOT)] if IS_CLONE else []
    path = dict.fromkeys([*clone, *stated, str(Path.cwd())])  # each once
    variables = {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(path),
        # A signal that torchrun does not handle kills it and leaves its ranks behind.
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace),
    }
    # Each rank compares it with the number of ranks that met (distributed.ranks).
    if ranks.number:
        variables["ISOBATCH_WORLD_SIZE"] = str(ranks.number)
    # Without the first, two ranks on a CPU are two trainings that both believe they are alone. With
    # more threads than cores, ranks wait for each other: a hundred times slower was seen.
    if ranks.gpus == 0:
        variables |= {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
    return variables


def grace_seconds(environment: Mapping[str, str]) -> int:
    """Seconds from a stop signal until ranks that still run are killed.

    torch's own variable: the time that torchrun gives its ranks when a scheduler signals it.
    """
    # 120 s: as long as scripts/slurm.sbatch leaves before the end of a job
    seconds = environment.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    if seconds.isdecimal() and int(seconds) > 0:
        return int(seconds)
    raise LaunchRefused(
        "launch: TORCH_ELASTIC_SHUTDOWN_TIMEOUT is the time that ranks have to save after a stop "
        "signal\n"
        f"  got:  TORCH_ELASTIC_SHUTDOWN_TIMEOUT={seconds}\n"
        "  why:  it has to be a whole number of seconds, 1 or more\n"
        f"  run:  TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 {LAUNCH}"
    )
