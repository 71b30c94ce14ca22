"""A job that falls over at once, again and again, must not do so as fast as it can."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from train.disk import Unreadable, read_json
from train.terminal import write_lines

LONGEST_PAUSE_SECONDS = 300
LOOK_SECONDS = 0.1  # between two looks whether a stop was asked for
RESTARTS = "restarts.json"


def pause(folder: Path, checkpoint: Path | None, timeout_seconds: float, stopped: Callable[[], bool]) -> str:
    """Before a restart that begins where the one before it began: 1 s, and twice as long each time, or up to a stop.

    The other ranks wait meanwhile, a little longer than `timeout_seconds`: half of these are never passed.
    Returns what restarts.json has to hold from now on.
    """
    place = checkpoint.name if checkpoint else "the start"
    try:
        earlier = read_json(folder / RESTARTS, {"from": str, "fruitless": int})
    except (OSError, Unreadable):
        earlier = {}
    fruitless = earlier.get("fruitless", 0) + 1 if earlier.get("from") == place else 0
    if fruitless:
        seconds = min(2 ** min(fruitless - 1, 10), LONGEST_PAUSE_SECONDS, timeout_seconds / 2)
        told = f"restart {fruitless + 1} from {place} without progress; waiting {seconds:g} s"
        write_lines(told)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not stopped():
            time.sleep(min(seconds, LOOK_SECONDS))
    return json.dumps({"from": place, "fruitless": fruitless})


def job_id() -> dict[str, str]:
    """What stays the same when the scheduler or the elastic launcher starts a job again; empty where nobody would."""
    names = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    found = {name: os.environ[name] for name in names if os.environ.get(name, "none") != "none"}
    return found | ({"ISOBATCH_ATTEMPT": os.environ["ISOBATCH_ATTEMPT"]} if "ISOBATCH_ATTEMPT" in os.environ else {})
