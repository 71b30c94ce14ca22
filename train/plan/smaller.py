"""The size of micro-batches that a run has shrunk to, for its next start: micro.json in its folder.

It holds for the plan that ran out of memory: stated otherwise, or on another number of ranks, it is left alone.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from train.disk import Unreadable, read_json, write_whole
from train.plan.run_plan import RunPlan

FILE = "micro.json"


@dataclass(frozen=True)
class Smaller:
    planned: int
    """Samples of a micro-batch, as the plan had it."""
    world_size: int
    micro: int
    """Those that it was shrunk to."""
    step: int
    """Which ran out of memory."""


def remember(folder: Path, smaller: Smaller) -> None:
    """Any rank may write it. What cannot be written costs another out-of-memory, and nothing else."""
    with suppress(OSError):
        write_whole(folder / FILE, json.dumps(asdict(smaller)).encode())


def shrunk(plan: RunPlan, found: Smaller | None) -> RunPlan:
    """The plan with the micro-batches that an earlier start has shrunk to, where there was one."""
    batch = plan.batch
    if found is None or (found.planned, found.world_size) != (batch.micro, batch.world_size):
        return plan
    note = (
        f"memory    micro-batches of at most {found.micro:,}, not {found.planned:,}: step {found.step:,} ran out of "
        f"memory ({FILE}; delete it to try the larger ones again)"
    )
    return replace(plan, batch=batch.recut(found.micro), notes=(*plan.notes, note))


def remembered(folder: Path) -> Smaller | None:
    """What is in a run's folder; None where nothing is that can be read."""
    try:
        found = Smaller(**read_json(folder / FILE))
    except (OSError, Unreadable, TypeError):
        return None
    numbers = [found.planned, found.world_size, found.micro, found.step]
    return found if all(type(n) is int and n > 0 for n in numbers) and found.micro <= found.planned else None
