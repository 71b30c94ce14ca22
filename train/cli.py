"""isobatch SUBCOMMAND ...: all entry points of an installed package, by one command.

Only the subcommand that is named is imported: `isobatch --help` answers without torch.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from train.errors import BAD_CONFIG, FINISHED, UserError, entry_point, leave

LOOPS = ("accumulate", "standard")
SUBCOMMANDS = {
    "train": "train on this process: [standard|accumulate] CONFIG [key=value ...]",
    "launch": "train on all GPUs, or on NPROC ranks: [standard|accumulate] CONFIG [key=value ...]",
    "plan": "the plan of a run; --memory 24GiB: which micro-batches fit",
    "verify": "is the gradient exact on your own config, model, data and loss?",
    "doctor": "what would stop a run on this machine",
    "new": "a task, a config and a test of your own, to start from",
    "prepare": "load the data of a config before a run",
    "evaluate": "the metrics of a run folder",
    "compare": "what runs cost and what they gained",
    "merge": "the model of a checkpoint as one file",
    "sweep": "a grid of runs, one after the other",
    "page": "a saved view and a report in W&B",
}
MODULES = {"doctor": "doctor.__main__", "page": "comparison.wandb_page"}
"""Of those that are not train/SUBCOMMAND.py."""


class UnknownSubcommand(UserError):
    """There is no subcommand of that name."""


def main() -> NoReturn:
    leave(run(sys.argv[1:]))


@entry_point
def run(argv: Sequence[str]) -> int:
    """The exit code of the subcommand; raises UnknownSubcommand."""
    # Nothing at all is a mistake, --help is a wish: the exit codes differ.
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return FINISHED if argv else BAD_CONFIG
    name = argv[0]
    if name not in SUBCOMMANDS:
        raise UnknownSubcommand(_unknown(name))
    return entry(name)(argv[1:])


def usage() -> str:
    lines = [f"  {name:<9} {summary}" for name, summary in SUBCOMMANDS.items()]
    head = "usage: isobatch SUBCOMMAND ...      isobatch SUBCOMMAND --help says more"
    return "\n".join([head, *lines])


def entry(name: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a subcommand."""
    # Not by their modules: these take the loop besides the arguments.
    if name == "train":
        return train
    if name == "plan":
        return plan
    module = importlib.import_module(f"train.{MODULES.get(name, name)}")
    main: Callable[[Sequence[str]], int] = module.main
    return main


def train(argv: Sequence[str]) -> int:
    """What `python -m train.accumulate` does, or `train.standard` where that is the first word."""
    words = list(argv)
    loop = LOOPS[0]
    if words and words[0] in LOOPS:
        loop = words.pop(0)
    module = importlib.import_module(f"train.{loop}")
    code: int = module.main(words, loop, module.compute_gradient)
    return code


def plan(argv: Sequence[str]) -> int:
    """By the launcher, which knows how many ranks there would be."""
    launch = entry("launch")
    # In front of `--`, behind which everything belongs to the launcher's own arguments.
    return launch([*argv, "--plan"] if "--" not in argv else ["--plan", *argv])


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
    if near:
        fix = f"did you mean {near[0]}?"
    else:
        fix = f"there are {', '.join(SUBCOMMANDS)}"
    return f"isobatch: there is no subcommand {name}; {fix}"
