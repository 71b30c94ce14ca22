"""micro.json in a run's folder: micro-batches that the run has shrunk to, for its next start.

It holds for the plan that ran out of memory: with another config, or on another number of ranks, it
is ignored.
"""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from train.config import Config
from train.disk import Unreadable, read_json, write_atomically
from train.plan.run_plan import RunPlan, Shrunk

FILE = "micro.json"


def can_shrink(plan: RunPlan, config: Config) -> bool:
    """Not in the standard loop, which has one micro-batch, and not with micro_tokens.

    There a limit on tokens decides how many samples a micro-batch has.
    """
    return config.batch.on_oom == "shrink" and plan.loop == "accumulate" and not plan.micro_steps


def remember(folder: Path, smaller: Shrunk) -> None:
    """Any rank may write it."""
    # Without it the next start runs out of memory once more, and nothing else.
    with suppress(OSError):
        write_atomically(folder / FILE, json.dumps(asdict(smaller)).encode())


def remembered(folder: Path) -> Shrunk | None:
    """None where nothing is, or nothing that makes sense."""
    try:
        shrunk = Shrunk(**read_json(folder / FILE))
    except (OSError, Unreadable, TypeError):
        return None
    numbers = (shrunk.planned, shrunk.world_size, shrunk.micro, shrunk.step)
    # Anybody may edit the file. Not isinstance: true would pass as 1.
    are_counts = all(type(number) is int and number > 0 for number in numbers)
    return shrunk if are_counts and shrunk.micro <= shrunk.planned else None


def with_shrunk(plan: RunPlan, shrunk: Shrunk | None) -> RunPlan:
    """The plan with the micro-batches that an earlier start of it has shrunk to."""
    batch = plan.batch
    if shrunk is None:
        return plan
    # It is of another config, or of another number of ranks.
    if shrunk.planned != batch.micro or shrunk.world_size != batch.world_size:
        return plan
    note = (
        f"memory    micro-batches of at most {shrunk.micro:,}, not {shrunk.planned:,}: step "
        f"{shrunk.step:,} ran out of memory ({FILE}; delete it to try the larger ones again)"
    )
    return replace(plan, batch=batch.recut(shrunk.micro), shrunk=shrunk, notes=(*plan.notes, note))
