"""Whether a run is tracked online: from the config and from who is logged in, without importing
wandb.
"""

import os

from train.config.schema import Wandb
from train.errors import UserError
from train.report.environment import logged_in_to_wandb, wandb_setting

MODES = {"dryrun": "offline", "run": "online"}  # old names in WANDB_MODE


class TrackerError(UserError):
    """The config asks for a tracking that cannot be had here."""


def check_login(config: Wandb) -> None:
    """Raise TrackerError where wandb.mode=online is asked for and nobody is logged in. Cheap, for
    every rank.
    """
    if config.mode == "online" and not logged_in_to_wandb():
        raise TrackerError(
            f"wandb.mode: got online, but nobody is logged in to {wandb_setting('base_url')} here. "
            "Type `wandb login` (or set WANDB_API_KEY), or add wandb.mode=offline and type `wandb "
            "sync` afterwards"
        )


def chosen_mode(config: Wandb) -> str:
    """online, offline or disabled; never a question to the user."""
    mode = config.mode
    if mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in (
        "1",
        "true",
        "yes",
        "on",
    ):
        return "disabled"  # Hugging Face's Trainer knows this variable
    if mode == "auto":
        mode = wandb_setting("mode")
    mode = MODES.get(mode, mode)
    if mode in ("offline", "disabled"):
        return mode
    return "online" if logged_in_to_wandb() else "offline"
