"""python -m train.plan [standard|accumulate] CONFIG [key=value ...] --memory 24GiB [--ranks 1,2,4]
[--json]

What fits, without a GPU and without memory: the user's model is traced in a process of its own.
./launch.sh --plan --memory ... starts it.
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
from train.memory.fits import counted_on, line_for, recommended, sizes_to_trace, tabulate
from train.memory.foresight import VARIANTS, foresee_apart, keep
from train.memory.page import Page
from train.plan.make import make_plan
from train.plan.run_plan import RunPlan
from train.tasks import make_task

UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}


class NotAsked(UserError):
    """The command line does not say what is to be planned."""


@dataclass
class Asked:
    loop: str = "accumulate"
    memory: int = 0
    ranks: list[int] = field(default_factory=list)
    json: bool = False
    words: list[str] = field(default_factory=list)


@entry_point
def main(argv: Sequence[str]) -> int:
    asked = parse(argv)
    loaded = load(asked.words)
    page, plan = make_page(loaded, asked)
    if asked.json:
        print(json.dumps(page.as_dict()))
    else:
        print(*plan.lines(), *page.lines(), sep="\n")
    return FINISHED


def make_page(loaded: Loaded, asked: Asked) -> tuple[Page, RunPlan]:
    """What fits, beside the plan of the run itself. Raises NotAsked."""
    sets = open_datasets(loaded.config, make_task(loaded.config).columns)
    plan = make_plan(loaded, asked.loop, sets, {})
    world_sizes = asked.ranks or [asked_world_size()]
    if plan.batch.weights and world_sizes != [plan.batch.world_size]:
        raise NotAsked(
            f"got --ranks {','.join(map(str, world_sizes))}, but batch.shares or batch.micro is a "
            "list, one number a rank: it says nothing about other numbers of ranks. Type: --ranks "
            f"{plan.batch.world_size}"
        )
    words = [str(loaded.path), *loaded.overrides]
    foresight = foresee_apart(words, "cuda", VARIANTS, sizes_to_trace(plan.batch, world_sizes))
    keep(foresight, loaded.config)
    usable = counted_on(asked.memory)
    tables = tabulate(foresight, plan.batch, world_sizes, usable)
    found = recommended(tables)
    page = Page(
        memory=asked.memory,
        usable=usable,
        foresight=foresight,
        tables=tables,
        recommended=found,
        line=None if found is None else line_for(found, loaded, asked.loop, plan.batch),
    )
    return page, plan


def parse(argv: Sequence[str]) -> Asked:
    """Raises NotAsked."""
    asked = Asked()
    words = [piece for word in argv for piece in _pieces(word)]
    if words and words[0] in ("standard", "accumulate"):
        asked.loop = words.pop(0)
    while words:
        word = words.pop(0)
        if word == "--memory":
            asked.memory = _bytes(words.pop(0) if words else "")
        elif word == "--ranks":
            asked.ranks = _numbers(words.pop(0) if words else "")
        elif word == "--json":
            asked.json = True
        elif word != "--plan":
            asked.words.append(word)
    if not asked.memory:
        raise NotAsked("what fits in how much? Type: --memory 24GiB, the memory of one GPU")
    return asked


def _pieces(word: str) -> list[str]:
    """`--memory=24GiB` as two words."""
    option, equals, value = word.partition("=")
    return [option, value] if equals and option in ("--memory", "--ranks") else [word]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+) ?([a-z]+)", text.lower())
    if (
        found is None
        or found[2] not in UNITS
        or not re.fullmatch(r"\d+(\.\d+)?", found[1])
        or not float(found[1])
    ):
        raise NotAsked(
            f"got --memory {text}; it takes a size with its unit. Type: --memory 24GiB, or 80GB"
        )
    return round(float(found[1]) * UNITS[found[2]])


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch("[1-9][0-9]*", part) for part in parts):
        raise NotAsked(f"got --ranks {text}; it takes numbers of ranks. Type: --ranks 1,2,4,8")
    return [int(part) for part in parts]


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
