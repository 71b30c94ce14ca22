"""A job that fails at once, again and again, must not do so as fast as it can."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from train.disk import Unreadable, read_json
from train.terminal import write_lines

LONGEST_PAUSE_SECONDS = 300
MOST_REQUEUES = 5
"""From one checkpoint. torchrun has its own count: --max_restarts."""
POLL_SECONDS = 0.1
"""Between two looks whether a stop was requested."""
RESTARTS = "restarts.json"


class NoProgress(RuntimeError):
    """A job that the scheduler starts again and again, from the same checkpoint."""


def pause(
    folder: Path, checkpoint: Path | None, timeout_seconds: float, stopped: Callable[[], bool]
) -> str:
    """Wait before a restart that begins where the one before it began; gives what restarts.json
    has to hold from now on.

    1 s, and twice as long each time, or up to a stop. The other ranks wait meanwhile, a little
    longer than `timeout_seconds`: half of these are never passed. Raises NoProgress where a job has
    been put back into the queue MOST_REQUEUES times and has saved nothing new.
    """
    start = checkpoint.name if checkpoint else "the start"
    # By the name of the checkpoint: a restart that got further begins from another one.
    fruitless = _fruitless_restarts(folder, start)
    # torchrun's restarts have a limit of their own, --max_restarts; the scheduler's have none.
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if requeued and fruitless >= MOST_REQUEUES:
        raise NoProgress(_no_progress(folder, start))
    if fruitless:
        # The exponent has a limit of its own: a job may restart a thousand times.
        doubled = 2 ** min(fruitless - 1, 10)
        seconds = min(doubled, LONGEST_PAUSE_SECONDS, timeout_seconds / 2)
        write_lines(f"restart {fruitless + 1} from {start} without progress; waiting {seconds:g} s")
        # monotonic: a clock that is set must not lengthen the pause. In short sleeps, since a stop
        # is to end it.
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not stopped():
            time.sleep(min(seconds, POLL_SECONDS))
    return json.dumps({"from": start, "fruitless": fruitless})


def _fruitless_restarts(folder: Path, start: str) -> int:
    """How many restarts in a row, this one included, began where the one before had begun."""
    try:
        earlier = read_json(folder / RESTARTS, {"from": str, "fruitless": int})
    # A file that cannot be read counts as none: the worst is one quick restart more.
    except (OSError, Unreadable):
        return 0
    if earlier["from"] != start:
        return 0
    count: int = earlier["fruitless"] + 1
    return count


def _no_progress(folder: Path, start: str) -> str:
    return (
        f"this job was put back into the queue {MOST_REQUEUES} times, and began from {start} each "
        f"time\n  got:  no new checkpoint in {folder / 'checkpoints'}\n"
        "  why:  its time limit, or the error that ends it, comes before its first save: it would "
        f"start for ever\n  run:  tail {folder / 'log.txt'}\n"
        "  then: sbatch again, with checkpoint.every_steps=FEWER or --time=MORE; a new job counts "
        "from 0"
    )


def job_id() -> dict[str, str]:
    """What stays the same when the scheduler or the elastic launcher starts a job again; empty
    where neither does.
    """
    job = {}
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        value = os.environ.get(name, "none")
        # "none" would be the same for two jobs that have nothing in common.
        if value != "none":  # torchrun's name for a run without an id
            job[name] = value
    if "ISOBATCH_ATTEMPT" in os.environ:
        job["ISOBATCH_ATTEMPT"] = os.environ["ISOBATCH_ATTEMPT"]
    return job
