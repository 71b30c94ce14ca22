"""What a run is called in W&B: by the config, else by WANDB_* variables and wandb's own files, else
by us.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from train.config.check_wandb import LONGEST_NAME
from train.config.problems import show
from train.config.schema import Wandb
from train.errors import some
from train.report.environment import wandb_setting
from train.report.login import MODES, TrackerError, chosen_mode

DEFAULT_PROJECT = "isobatch"
CLOSED: dict[str, Any] = {
    "program": "isobatch",
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
    "finish_timeout_raises": True,
}
"""Nothing is sent but what we hand over: no source, no command, no list of packages, no output."""
KEYS = {
    "entity": "wandb.entity",
    "project": "wandb.project",
    "run_name": "wandb.name",
    "run_group": "wandb.group",
    "run_tags": "wandb.tags",
    "run_notes": "wandb.notes",
    "mode": "wandb.mode",
}
"""{setting of wandb: the key of the config that decides it}"""
OF_THE_RUN = ("root_dir", "run_id", "resume")
"""Settings that follow from the run folder and its checkpoints."""
OF_OTHERS = {
    "WANDB_LOG_MODEL": "type wandb.log_model=true",
    "WANDB_WATCH": "Isobatch watches no module",
}
"""Variables that Hugging Face's Trainer reads, and wandb does not."""


def labels(config: Wandb, *, run_name: str, group: str, job_type: str) -> dict[str, Any]:
    """Settings of wandb.init. `run_name`, `group`, `job_type`: where nobody says anything else.

    A trial of a sweep belongs to the sweep's project, whatever the config says.
    """
    environ = os.environ
    if environ.get("WANDB_SWEEP_ID"):
        config = replace(config, entity=None, project=None)
    tags = [tag.strip() for tag in environ.get("WANDB_TAGS", "").split(",")]
    found = {
        "entity": config.entity or wandb_setting("entity"),
        "project": config.project or wandb_setting("project") or DEFAULT_PROJECT,
        "run_name": config.name or environ.get("WANDB_NAME") or run_name[:LONGEST_NAME],
        "run_group": config.group or environ.get("WANDB_RUN_GROUP") or group[:LONGEST_NAME],
        "run_job_type": environ.get("WANDB_JOB_TYPE") or job_type,
        "run_tags": list(config.tags) or [tag for tag in tags if tag],
        "run_notes": config.notes or environ.get("WANDB_NOTES"),
    }
    return {name: value for name, value in found.items() if value}


def check_settings(config: Wandb) -> None:
    """Raise TrackerError where wandb refuses what the config or a variable says. Imports wandb: for
    rank 0 alone.
    """
    if chosen_mode(config) == "disabled":
        return
    try:
        import wandb
    except ImportError:  # an installation that is broken costs a warning later, not the run
        return
    said = labels(config, run_name="run", group="run", job_type="train")
    for setting in KEYS.keys() & said.keys():
        why = _refusal(partial(wandb.Settings, **{setting: said[setting]}))
        if why:
            raise TrackerError(
                f"{_origin(config, setting)}: got {show(said[setting])}; W&B refuses it: {why}"
            )
    for name, value in os.environ.items():
        # what is used of the tags was looked at above
        if name.startswith("WANDB_") and name != "WANDB_TAGS":
            why = _refusal(partial(wandb.Settings().update_from_env_vars, {name: value}))
            if why:
                raise TrackerError(
                    f"{name}, in the environment: W&B refuses it: {why}. Type: unset {name}"
                )


def _refusal(ask: Callable[[], object]) -> str:
    """Why wandb refuses; empty where it does not. Its own sentence, without the value, which may be
    a key.
    """
    import wandb
    from pydantic import ValidationError

    try:
        ask()
    except ValidationError as error:
        return "; ".join(str(each["msg"]) for each in error.errors())
    except (ValueError, wandb.errors.UsageError) as error:
        return str(error)
    return ""


def _origin(config: Wandb, setting: str) -> str:
    """Who has said it: a key of the config, or a variable."""
    attribute = KEYS[setting].removeprefix("wandb.")
    if getattr(config, attribute):
        return KEYS[setting]
    return f"WANDB_{setting.removeprefix('run_').upper()}".replace("WANDB_GROUP", "WANDB_RUN_GROUP")


def unused(settings: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """A line that names the variables which say otherwise than what is used, and why; empty where
    there are none.
    """
    import wandb

    told = []
    for name, value in sorted(environ.items()):
        if not name.startswith("WANDB_"):
            continue
        asked = wandb.Settings()
        asked.update_from_env_vars({name: value})
        for setting in sorted(asked.model_fields_set & settings.keys()):
            if _plain(getattr(asked, setting)) != _plain(settings[setting]):
                told.append(f"{name} ({_reason(setting, settings)})")
    told += [f"{name} ({instead})" for name, instead in OF_OTHERS.items() if environ.get(name)]
    return f"not used: {some(told, len(told))}" if told else ""


def _plain(value: Any) -> Any:
    """Of two ways to say the same, one."""
    if isinstance(value, tuple | list):
        return list(value)
    return MODES.get(value, value) if isinstance(value, str) else value


def _reason(setting: str, settings: Mapping[str, Any]) -> str:
    if setting in KEYS:
        return f"the config says {KEYS[setting]}={show(settings[setting])}"
    if setting in OF_THE_RUN:
        return "the run folder and its checkpoints decide it"
    return "Isobatch decides what is sent, and when it gives up"
