"""Whether those who stop a run leave it the time to save."""

import math
import os

from train.installation import LAUNCH
from train.report.progress import duration


def grace_seconds() -> float:
    """From a stop signal until launch.sh, or torchrun, kills the ranks."""
    return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))


def slow_stop(step_seconds: float, save_seconds: float, batch_seconds: float = 0.0) -> str:
    """A warning where a stop takes longer, as far as its times are known; else nothing.

    It waits for two steps, or for two batches of an evaluation (or one text that a generation
    makes), then saves.
    """
    evaluation_is_longer = batch_seconds > step_seconds
    waits_for = "two batches of an evaluation" if evaluation_is_longer else "two steps"
    needed = 2 * max(step_seconds, batch_seconds) + save_seconds
    grace = grace_seconds()
    if needed <= grace:
        return ""
    enough = math.ceil(2 * needed)
    return (
        f"warning   a stop takes {waits_for} and a save, here {duration(needed)} or more, and the "
        f"ranks are killed {duration(grace)} after the signal: nothing is saved then. Type: "
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={enough} {LAUNCH} ... (to SLURM: "
        f"--signal=B:USR1@{enough} too)"
    )
