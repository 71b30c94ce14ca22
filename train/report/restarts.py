"""A job that falls over at once, again and again, must not do so as fast as it can."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from train.disk import Unreadable, read_json
from train.terminal import write_lines

LONGEST_PAUSE_SECONDS = 300
MOST_REQUEUES = 5
"""From one checkpoint. torchrun counts for itself: --max_restarts."""
LOOK_SECONDS = 0.1  # between two looks whether a stop was asked for
RESTARTS = "restarts.json"


class NoProgress(RuntimeError):
    """A job that the scheduler starts again and again, from the same checkpoint."""


def pause(
    folder: Path, checkpoint: Path | None, timeout_seconds: float, stopped: Callable[[], bool]
) -> str:
    """Before a restart that begins where the one before it began: 1 s, and twice as long each time,
    or up to a stop.

    The other ranks wait meanwhile, a little longer than `timeout_seconds`: half of these are never
    passed. Returns what restarts.json has to hold from now on. Raises NoProgress where a job has
    been put back into the queue MOST_REQUEUES times and has saved nothing new.
    """
    place = checkpoint.name if checkpoint else "the start"
    try:
        earlier = read_json(folder / RESTARTS, {"from": str, "fruitless": int})
    except (OSError, Unreadable):
        earlier = {}
    fruitless = earlier.get("fruitless", 0) + 1 if earlier.get("from") == place else 0
    if fruitless >= MOST_REQUEUES and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        raise NoProgress(_no_progress(folder, place))
    if fruitless:
        seconds = min(2 ** min(fruitless - 1, 10), LONGEST_PAUSE_SECONDS, timeout_seconds / 2)
        told = f"restart {fruitless + 1} from {place} without progress; waiting {seconds:g} s"
        write_lines(told)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stopped():
            time.sleep(min(seconds, LOOK_SECONDS))
    return json.dumps({"from": place, "fruitless": fruitless})


def _no_progress(folder: Path, place: str) -> str:
    return (
        f"this job was put back into the queue {MOST_REQUEUES} times, and began from {place} each "
        f"time\n  got:  no new checkpoint in {folder / 'checkpoints'}\n"
        "  why:  its time, or what it fails of, comes before its first save: it would start for "
        f"ever\n  type: tail {folder / 'log.txt'}\n"
        "  then: sbatch again, with checkpoint.every_steps=FEWER or --time=MORE; a new job counts "
        "from 0"
    )


def job_id() -> dict[str, str]:
    """What stays the same when the scheduler or the elastic launcher starts a job again; empty
    where nobody would.
    """
    names = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    found = {name: os.environ[name] for name in names if os.environ.get(name, "none") != "none"}
    return found | (
        {"ISOBATCH_ATTEMPT": os.environ["ISOBATCH_ATTEMPT"]}
        if "ISOBATCH_ATTEMPT" in os.environ
        else {}
    )
