"""Whether those who stop a run leave it the time to save."""

import math
import os

from train.installation import LAUNCH
from train.report.progress import duration


def grace_seconds() -> float:
    """From a stop signal until launch.sh, or torchrun, kills the ranks."""
    # torchrun's own default is 30 s.
    return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))


def slow_stop(step_seconds: float, save_seconds: float, batch_seconds: float = 0.0) -> str:
    """A warning where a stop takes longer than that, by the times known so far; else empty.

    It waits for two steps, or for two batches of an evaluation (or one text that a generation
    makes), then saves.
    """
    waits_for = "two steps"
    if batch_seconds > step_seconds:
        waits_for = "two batches of an evaluation"
    stop_seconds = 2 * max(step_seconds, batch_seconds) + save_seconds
    grace = grace_seconds()
    if stop_seconds <= grace:
        return ""
    # Twice, as no step and no save takes exactly as long as the one before.
    enough = math.ceil(2 * stop_seconds)
    return (
        f"warning   a stop takes {waits_for} and a save, here {duration(stop_seconds)} or more, "
        f"and the ranks are killed {duration(grace)} after the signal: nothing is saved then. Run: "
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={enough} {LAUNCH} ... (to SLURM: "
        f"--signal=B:USR1@{enough} too)"
    )
