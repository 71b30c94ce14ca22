"""Whether those who stop a run leave it the time to save."""

import math
import os

from train.report.progress import duration


def grace_seconds() -> float:
    """From a stop signal until launch.sh, or torchrun, kills the ranks."""
    return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))


def slow_stop(step_seconds: float, save_seconds: float) -> str:
    """A warning where the two steps and the save of a stop, as far as they are known, take longer; else nothing."""
    needed, grace = 2 * step_seconds + save_seconds, grace_seconds()
    if needed <= grace:
        return ""
    enough = math.ceil(2 * needed)
    return (
        f"warning   a stop takes two steps and a save, here {duration(needed)} or more, and the ranks are killed "
        f"{duration(grace)} after the signal: nothing is saved then. Type: TORCH_ELASTIC_SHUTDOWN_TIMEOUT={enough} "
        f"./launch.sh ... (to SLURM: --signal=B:USR1@{enough} too)"
    )
