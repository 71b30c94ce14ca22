"""The size of micro-batches that a run has shrunk to, for its next start: micro.json in its folder.

It holds for the plan that ran out of memory: stated otherwise, or on another number of ranks, it is
left alone.
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
    """The standard loop has one micro-batch; with micro_tokens, a limit on tokens says how many
    samples one has.
    """
    return config.batch.on_oom == "shrink" and plan.loop == "accumulate" and not plan.micro_steps


def remember(folder: Path, smaller: Shrunk) -> None:
    """Any rank may write it. What cannot be written costs another out-of-memory, and
    nothing else.
    """
    with suppress(OSError):
        write_atomically(folder / FILE, json.dumps(asdict(smaller)).encode())


def shrunk(plan: RunPlan, found: Shrunk | None) -> RunPlan:
    """The plan with the micro-batches that an earlier start has shrunk to, where there was one."""
    batch = plan.batch
    if found is None or (found.planned, found.world_size) != (batch.micro, batch.world_size):
        return plan
    note = (
        f"memory    micro-batches of at most {found.micro:,}, not {found.planned:,}: step "
        f"{found.step:,} ran out of memory ({FILE}; delete it to try the larger ones again)"
    )
    return replace(plan, batch=batch.recut(found.micro), shrunk=found, notes=(*plan.notes, note))


def remembered(folder: Path) -> Shrunk | None:
    """What is in a run's folder; None where nothing is that can be read."""
    try:
        found = Shrunk(**read_json(folder / FILE))
    except (OSError, Unreadable, TypeError):
        return None
    numbers = [found.planned, found.world_size, found.micro, found.step]
    return (
        found
        if all(type(n) is int and n > 0 for n in numbers) and found.micro <= found.planned
        else None
    )
