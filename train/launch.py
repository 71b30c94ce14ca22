"""Starts the ranks of a run on all GPUs or on the CPU.

python -m train.launch [standard|accumulate] CONFIG [key=value ...]

./launch.sh execs it once it has found or made the environment; `isobatch launch` calls it.
"""

import os
import sys
from collections.abc import MutableMapping, Sequence

from train.errors import FAILED, entry_point, leave, print_error
from train.launching import LAUNCHER_PID, MARK
from train.launching.arguments import Arguments, parse, usage
from train.launching.choose import choose
from train.launching.command import build, grace_seconds
from train.launching.launcher_check import check
from train.launching.launcher_file import find
from train.launching.machines import find_machines
from train.launching.rendezvous import NotMet, meet
from train.launching.supervisor import Supervisor

OF_AN_OUTER_RUN = (
    "RANK",
    "LOCAL_RANK",
    "ISOBATCH_WORLD_SIZE",
    "ISOBATCH_ENDED",
    "ISOBATCH_ATTEMPT",
)
OF_ITS_MACHINES = ("PET_RDZV_ID", "PET_RDZV_ENDPOINT", "PET_NNODES", "PET_LOCAL_ADDR")
INTERRUPTED = 130


@entry_point
def main(argv: Sequence[str]) -> int:
    """The exit code: 0 finished, 2 bad config or data, 75 stopped and saved, else a failure."""
    _forget_outer_run(os.environ)
    arguments = parse(argv)
    if arguments.help:
        print(usage(), end="")
        return 0
    file = find(os.environ.get("LAUNCHER"))
    machines = find_machines(arguments, file, os.environ)
    arguments = machines.among(arguments)
    check(file, arguments.flags, os.environ, lambda: _precision(arguments))
    grace = grace_seconds(os.environ)
    ranks = choose(arguments, file, os.environ)
    command = build(arguments, file, ranks, grace).with_variables(machines.variables())
    if arguments.dry_run:
        command.print(adds=arguments.needs_ranks)
        return 0
    if not arguments.needs_ranks:
        sys.stdout.flush()
        os.execve(sys.executable, command.words, {**os.environ, **command.variables})
    try:
        with meet(machines, ranks.number) as variables:
            return Supervisor(command.with_variables(variables), grace).run()
    except NotMet as error:
        print_error(str(error))
        return FAILED
    except KeyboardInterrupt:  # while the others were waited for
        return INTERRUPTED


def _forget_outer_run(environment: MutableMapping[str, str]) -> None:
    """It may be called from inside a run, whose variables are not meant for the new ranks."""
    of_machines = OF_ITS_MACHINES if MARK in environment else ()
    for name in (*OF_AN_OUTER_RUN, LAUNCHER_PID, *of_machines):
        environment.pop(name, None)


def _precision(arguments: Arguments) -> str:
    """The config's, read without importing torch or the user's own code."""
    from train.config import load  # here: 0.3 CPU seconds, for those that state a precision twice

    return load([arguments.config, *arguments.words, "--print-config"]).config.precision


if __name__ == "__main__":
    # By leave: a Ctrl-C while the interpreter shuts down would else change the exit code.
    leave(main(sys.argv[1:]))
