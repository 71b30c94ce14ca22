"""Whether a run is tracked online: from the config, and from what wandb itself finds here.

wandb is imported inside the functions: that takes a second or two, which untracked runs and the
ranks other than 0 need not pay.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from train.config.schema import Wandb
from train.errors import UserError

OLD_MODES = {"dryrun": "offline", "run": "online"}
"""Old names that WANDB_MODE may still hold."""
TRUE = ("1", "true", "yes", "on")


class TrackerError(UserError):
    """The tracking that the config asks for is not possible here."""


def check_login(config: Wandb) -> None:
    """Raise TrackerError where wandb.mode=online is configured and nobody is logged in.

    Imports wandb: for rank 0 alone.
    """
    # Online alone needs a login: auto goes offline without one.
    if config.mode != "online":
        return
    try:
        logged_in = is_logged_in()
    except ImportError:  # a broken installation costs a warning later, not the run
        return
    if not logged_in:
        raise TrackerError(
            f"wandb.mode: got online, but nobody is logged in to {wandb_setting('base_url')} here. "
            "Run: wandb login (or set WANDB_API_KEY). Or set: wandb.mode=offline, and run "
            "`wandb sync` afterwards"
        )


def tracking_mode(config: Wandb) -> str:
    """online, offline or disabled; never a question to the user."""
    mode = config.mode
    if mode == "auto":
        # Hugging Face's Trainer reads WANDB_DISABLED; wandb itself does not.
        if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
            return "disabled"
        mode = _mode_of_wandb()
    # Also for WANDB_MODE, which may hold an old name.
    mode = OLD_MODES.get(mode, mode)
    if mode in ("offline", "disabled"):
        return mode
    with suppress(ImportError):
        if is_logged_in():
            return "online"
    return "offline"


def wandb_setting(name: str) -> str:
    """A setting as wandb has it: from its variable, its two files, or its default; else empty."""
    # The variable before the files, as wandb has it.
    variable = os.environ.get(f"WANDB_{name.upper()}")
    if variable:
        return variable
    with suppress(ImportError):
        return str(getattr(_settings_here(), name) or "")
    return ""


def is_logged_in() -> bool:
    """Whether wandb will find credentials for its server, without asking for them.

    Not by wandb.login(): that answers False in offline mode and beside an open run, and rewrites
    the user's settings file.
    """
    from wandb.errors import AuthenticationError, UsageError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    # Not asked of the server: a start without a network must not wait here.
    if wandb_setting("api_key") or wandb_setting("identity_token_file"):
        return True
    try:
        return read_netrc_auth(host=wandb_setting("base_url")) is not None
    except AuthenticationError:  # there is a key, of a wrong form: wandb.init says so
        return True
    except (UsageError, ValueError):  # not an address: check_settings says so
        return False


def _mode_of_wandb() -> str:
    variable = os.environ.get("WANDB_MODE")
    # Before wandb is imported: with the variable set its answer is not needed.
    if variable:
        return variable
    with suppress(ImportError):
        settings = _settings_here()
        # Its default is online, also where nobody is logged in.
        # model_fields_set, since the value alone does not tell a default from a choice.
        if "mode" in settings.model_fields_set:
            return str(settings.mode)
    return "auto"


def _settings_here() -> Any:
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    return _settings_of_files(folder / "settings", Path.cwd())


# Once for a pair of files: wandb prints a complaint about a broken one at each reading.
@cache
def _settings_of_files(user_file: Path, working_directory: Path) -> Any:
    """wandb.Settings as `wandb login` and `wandb init` have left them.

    Not wandb.setup().settings: that starts a thread, and the processes that read data are forked
    after this. wandb finds the second file, wandb/settings, in the working directory by itself.
    """
    import wandb

    settings = wandb.Settings(silent=True, settings_system=str(user_file))
    settings.update_from_system_settings()
    return settings
