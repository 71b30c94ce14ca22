"""Starts a training on all GPUs or on the CPU: python -m train.launch [standard|accumulate] CONFIG [key=value ...]

./launch.sh is the same, once it has found or made the environment.
"""

import os
import sys
from collections.abc import Sequence

from train.errors import entry_point, leave
from train.launching.arguments import USAGE, Arguments, parse
from train.launching.choose import choose
from train.launching.command import build, grace_seconds
from train.launching.launcher_check import check
from train.launching.launcher_file import find
from train.launching.supervisor import Supervisor

OF_AN_OUTER_RUN = ("RANK", "LOCAL_RANK", "ISOBATCH_WORLD_SIZE", "ISOBATCH_ENDED", "ISOBATCH_ATTEMPT")


@entry_point
def main(argv: Sequence[str]) -> int:
    """The exit code: 0 finished, 2 bad config or data, 75 stopped on request and saved, else a failure."""
    for name in (*OF_AN_OUTER_RUN, "ISOBATCH_LAUNCHER_PID"):  # this was started from a run
        os.environ.pop(name, None)
    arguments = parse(argv)
    if arguments.help:
        print(USAGE, end="")
        return 0
    file = find(os.environ.get("LAUNCHER"))
    check(file, arguments.flags, os.environ, lambda: _precision(arguments))
    grace = grace_seconds(os.environ)
    command = build(arguments, file, choose(arguments, file, os.environ), grace)
    if arguments.dry_run:
        command.print(adds=arguments.needs_ranks)
        return 0
    if not arguments.needs_ranks:
        sys.stdout.flush()
        os.execve(sys.executable, command.words, {**os.environ, **command.variables})
    return Supervisor(command, grace).run()


def _precision(arguments: Arguments) -> str:
    """The config's, read without importing torch or the user's own code."""
    from train.config import load  # here: 0.3 CPU seconds, for those that state a precision twice

    return load([arguments.config, *arguments.words, "--print-config"]).config.precision


if __name__ == "__main__":
    leave(main(sys.argv[1:]))  # a Ctrl-C that comes while the interpreter ends would else be the exit code
