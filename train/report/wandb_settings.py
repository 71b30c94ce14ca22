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
from train.report.login import OLD_MODES, TrackerError, tracking_mode, wandb_setting

DEFAULT_PROJECT = "isobatch"
FIXED: dict[str, Any] = {
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
VARIABLES = {
    "entity": "WANDB_ENTITY",
    "project": "WANDB_PROJECT",
    "run_name": "WANDB_NAME",
    "run_group": "WANDB_RUN_GROUP",
    "run_tags": "WANDB_TAGS",
    "run_notes": "WANDB_NOTES",
    "mode": "WANDB_MODE",
}
"""{setting of wandb: the variable that decides it where the config does not}"""
OF_THE_RUN = ("root_dir", "run_id", "resume")
"""Settings that follow from the run folder and its checkpoints."""
OF_OTHERS = {
    "WANDB_LOG_MODEL": "set wandb.log_model=true",
    "WANDB_WATCH": "Isobatch watches no module",
}
"""Variables that Hugging Face's Trainer reads, and wandb does not."""


def labels(config: Wandb, *, run_name: str, group: str, job_type: str) -> dict[str, Any]:
    """Settings of wandb.init. `run_name`, `group`, `job_type`: the defaults of the last resort.

    A trial of a sweep belongs to the sweep's project, whatever the config says.
    """
    environ = os.environ
    if environ.get("WANDB_SWEEP_ID"):
        config = replace(config, entity=None, project=None)
    tags = list(config.tags)
    if not tags:
        stripped = map(str.strip, environ.get("WANDB_TAGS", "").split(","))
        tags = list(filter(None, stripped))
    settings = {
        "entity": config.entity or wandb_setting("entity"),
        "project": config.project or wandb_setting("project") or DEFAULT_PROJECT,
        "run_name": config.name or environ.get("WANDB_NAME") or run_name[:LONGEST_NAME],
        "run_group": config.group or environ.get("WANDB_RUN_GROUP") or group[:LONGEST_NAME],
        "run_job_type": environ.get("WANDB_JOB_TYPE") or job_type,
        "run_tags": tags,
        "run_notes": config.notes or environ.get("WANDB_NOTES"),
    }
    return {name: value for name, value in settings.items() if value}


def check_settings(config: Wandb) -> None:
    """Raise TrackerError where wandb rejects a value of the config or of a variable.

    Imports wandb: for rank 0 alone.
    """
    if tracking_mode(config) == "disabled":
        return
    try:
        import wandb
    except ImportError:  # a broken installation costs a warning later, not the run
        return
    settings = labels(config, run_name="run", group="run", job_type="train")
    for name in KEYS.keys() & settings.keys():
        value = settings[name]
        # One at a time, so that the message can name the key or the variable that is wrong.
        why = _why_rejected(partial(wandb.Settings, **{name: value}))
        if why:
            raise TrackerError(f"{_origin(config, name)}: got {show(value)}; W&B refuses it: {why}")
    for variable, text in os.environ.items():
        # The tags that are used were looked at above.
        if not variable.startswith("WANDB_") or variable == "WANDB_TAGS":
            continue
        why = _why_rejected(partial(wandb.Settings().update_from_env_vars, {variable: text}))
        if why:
            raise TrackerError(
                f"{variable}, in the environment: W&B refuses it: {why}. Run: unset {variable}"
            )


def _why_rejected(set_value: Callable[[], object]) -> str:
    """wandb's own sentence, without the value, which may be a key; empty where it accepts it."""
    import wandb
    from pydantic import ValidationError

    try:
        set_value()
    except ValidationError as error:
        return "; ".join(str(problem["msg"]) for problem in error.errors())
    except (ValueError, wandb.errors.UsageError) as error:
        return str(error)
    return ""


def _origin(config: Wandb, setting: str) -> str:
    """The key of the config, or the variable, that holds the value of a setting."""
    key = KEYS[setting]
    if getattr(config, key.removeprefix("wandb.")):
        return key
    return VARIABLES[setting]


def unused_variables(settings: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """A line that names the variables which have no effect, and why; empty where all have one."""
    import wandb

    unused = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith("WANDB_"):
            continue
        # One variable into empty settings: wandb itself says which setting it decides.
        from_variable = wandb.Settings()
        from_variable.update_from_env_vars({variable: text})
        for setting in sorted(from_variable.model_fields_set & settings.keys()):
            value = _comparable(getattr(from_variable, setting))
            if value != _comparable(settings[setting]):
                unused.append(f"{variable} ({_reason(setting, settings)})")
    for variable, instead in OF_OTHERS.items():
        if environ.get(variable):
            unused.append(f"{variable} ({instead})")
    if not unused:
        return ""
    return f"not used: {some(unused, len(unused))}"


def _comparable(value: Any) -> Any:
    """The same value for the spellings that mean the same."""
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, str):
        return OLD_MODES.get(value, value)
    return value


def _reason(setting: str, settings: Mapping[str, Any]) -> str:
    if setting in KEYS:
        return f"the config says {KEYS[setting]}={show(settings[setting])}"
    if setting in OF_THE_RUN:
        return "the run folder and its checkpoints decide it"
    return "Isobatch decides what is sent, and when it gives up"
