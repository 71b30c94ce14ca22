"""python -m train.plan [standard|accumulate] CONFIG [key=value ...] --memory 24GiB [OPTION ...]

Options: --ranks 1,2,4 and --json. What fits, without a GPU and without its memory: the user's model
is traced in a separate process. ./launch.sh --plan --memory ... starts it.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from train.config import Loaded, load
from train.data import open_datasets
from train.distributed.ranks import asked_world_size
from train.errors import FINISHED, UserError, entry_point, leave
from train.memory.fits import launch_command, recommended, sizes_to_trace, tabulate, usable_bytes
from train.memory.memory_trace import VARIANTS, save_trace, trace_in_subprocess
from train.memory.page import Page
from train.plan.describe import describe
from train.plan.make import make_plan
from train.plan.run_plan import RunPlan
from train.tasks import make_task

UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}


class BadArguments(UserError):
    """The command line does not say what is to be planned."""


@dataclass
class Arguments:
    loop: str = "accumulate"
    memory: int = 0
    """Bytes of one GPU."""
    ranks: list[int] = field(default_factory=list)
    """Numbers of ranks to plan for. Empty: as many as would be started."""
    json: bool = False
    words: list[str] = field(default_factory=list)
    """CONFIG and key=value."""


@entry_point
def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    loaded = load(arguments.words)
    page, plan = make_page(loaded, arguments)
    if arguments.json:
        print(json.dumps(page.as_dict()))
    else:
        print(*describe(plan), *page.lines(), sep="\n")
    return FINISHED


def make_page(loaded: Loaded, arguments: Arguments) -> tuple[Page, RunPlan]:
    """What fits, beside the plan of the run itself. Raises BadArguments."""
    sets = open_datasets(loaded.config, make_task(loaded.config).columns)
    # Without digests of the weights to start from, which are read at about 1 GB per second: only
    # hashes need them, and this page shows none.
    plan = make_plan(loaded, arguments.loop, sets, {})
    world_sizes = arguments.ranks or [asked_world_size()]
    if plan.batch.weights and world_sizes != [plan.batch.world_size]:
        raise BadArguments(
            f"got --ranks {','.join(map(str, world_sizes))}, but batch.shares or batch.micro is a "
            "list, one number a rank: it says nothing about other numbers of ranks. Set: --ranks "
            f"{plan.batch.world_size}"
        )
    words = [str(loaded.path), *loaded.overrides]
    trace = trace_in_subprocess(words, "cuda", VARIANTS, sizes_to_trace(plan.batch, world_sizes))
    # A run of this config compares its own first measured peak with it.
    save_trace(trace, loaded.config)
    usable = usable_bytes(arguments.memory)
    tables = tabulate(trace, plan.batch, world_sizes, usable)
    choice = recommended(tables)
    command = None
    if choice is not None:
        command = launch_command(choice, loaded, arguments.loop, plan.batch)
    page = Page(
        memory=arguments.memory,
        usable=usable,
        trace=trace,
        tables=tables,
        recommended=choice,
        line=command,
    )
    return page, plan


def parse(argv: Sequence[str]) -> Arguments:
    """Raises BadArguments."""
    arguments = Arguments()
    words = [piece for word in argv for piece in _pieces(word)]
    if words and words[0] in ("standard", "accumulate"):
        arguments.loop = words.pop(0)
    while words:
        word = words.pop(0)
        if word == "--memory":
            arguments.memory = _bytes(words.pop(0) if words else "")
        elif word == "--ranks":
            arguments.ranks = _numbers(words.pop(0) if words else "")
        elif word == "--json":
            arguments.json = True
        # launch.sh passes its own --plan along.
        elif word != "--plan":
            arguments.words.append(word)
    if not arguments.memory:
        raise BadArguments("what fits in how much? Set: --memory 24GiB, the memory of one GPU")
    return arguments


def _pieces(word: str) -> list[str]:
    """`--memory=24GiB` as two words."""
    option, equals, value = word.partition("=")
    if equals and option in ("--memory", "--ranks"):
        return [option, value]
    return [word]


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text.lower())
    size = 0.0
    if match is not None and match[2] in UNITS:
        size = float(match[1]) * UNITS[match[2]]
    if size == 0:
        raise BadArguments(
            f"got --memory {text}; it takes a size with its unit. Set: --memory 24GiB, or 80GB"
        )
    return round(size)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch("[1-9][0-9]*", part) for part in parts):
        raise BadArguments(f"got --ranks {text}; it takes numbers of ranks. Set: --ranks 1,2,4,8")
    return [int(part) for part in parts]


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
