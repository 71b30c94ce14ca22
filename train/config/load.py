"""load(argv): defaults < extends < YAML < key=value, checked in full before anything starts."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from train.config.check import PRECISIONS, check
from train.config.check_names import check_letters
from train.config.command_line import parse
from train.config.convert import Origins, convert, missing, resolve_values
from train.config.hints import find_unknown
from train.config.home import at_home
from train.config.keys import TARGETS
from train.config.merge import merge
from train.config.names import safe, short_form
from train.config.problems import ConfigError, Problem, fresh
from train.config.read import read_layers
from train.config.schema import Config
from train.config.targets import (
    TargetError,
    check_arguments,
    make_importable,
    resolve,
    resolve_source,
)
from train.config.trust import Foreign, check_trusted
from train.redaction import REDACTED, clean, learn

HOMES = {"model": "train.models", "task": "train.tasks", "optimizer": "torch.optim"}
"""Where a section's bare target is looked up; that of data is train.data."""
FUNCTIONS = ("data.transform", "data.eval_transform")
GIVEN = {"optimizer": ("params", "lr")}
"""Arguments that Isobatch passes itself."""


@dataclass(frozen=True)
class Loaded:
    config: Config
    path: Path
    """The config file."""
    overrides: tuple[str, ...]
    """The key=value arguments as they were typed."""
    flags: frozenset[str]
    """The options, such as `--plan`."""
    unresolved: str = field(repr=False)

    def yaml(self) -> str:
        """All keys, defaults included. Interpolations stay as written: resolved ones would spill
        secrets.
        """
        return self.unresolved


def load(argv: Sequence[str], foreign: Foreign | None = None) -> Loaded:
    """The config that a command line asks for.

    `foreign`: it is that of a run folder, and its targets are looked at before they are imported.
    Raises ConfigError with all its problems, NotTrusted for what a foreign one must not name.
    """
    check_letters(argv)
    command = parse(argv)
    layers = [at_home(layer) for layer in [*read_layers(command.path), command.layer]]
    make_importable()
    settings, misplaced = merge(layers)
    origins = Origins(settings, str(command.path))
    problems = [
        *command.problems,
        *(problem for layer in layers for problem in find_unknown(layer, settings)),
    ]
    problems += fresh(misplaced, problems)
    structured, misfits = convert(settings, origins)
    problems += misfits
    problems += fresh(missing(settings, origins), problems)
    values, unresolvable = resolve_values(structured, origins)
    learn(values)  # what interpolations have brought, too
    problems += fresh(unresolvable, problems)
    problems += fresh((Problem(origins(key), key, text) for key, text in check(values)), problems)
    if foreign is not None and not problems:
        check_trusted(values, OmegaConf.to_container(structured, resolve=False), origins, foreign)
    # it answers at once: targets are imported, and torch with them
    if "--print-config" not in command.flags:
        problems += fresh(_check_targets(values, origins, problems, foreign), problems)
    if problems:
        raise ConfigError(problems)
    config = cast(Config, OmegaConf.to_object(structured))
    dtype = config.model.dtype and PRECISIONS.get(config.model.dtype, config.model.dtype)
    config = dataclasses.replace(
        config,
        precision=PRECISIONS.get(config.precision, config.precision),
        model=dataclasses.replace(config.model, dtype=dtype),
    )
    return Loaded(
        config, command.path, command.overrides, command.flags, OmegaConf.to_yaml(structured)
    )


def run_name(loaded: Loaded) -> str:
    """The name that the config states, or its stem and a short form of the overrides.

    Under a W&B sweep the trial's id follows, which all ranks inherit: two trials never share a
    folder, and a trial that is started again finds its own. In a SLURM array the number of the task
    does, where the name does not hold it yet (`seed=%a`, scripts/slurm.sbatch).
    """
    # It names a folder, and runs elsewhere: a secret that is spliced into it must not.
    stated = loaded.config.name and clean(loaded.config.name).replace(REDACTED, "redacted")
    name = stated or short_form(loaded.path.stem, clean(loaded.overrides))
    if os.environ.get("WANDB_SWEEP_ID"):
        trial = os.environ.get("WANDB_RUN_ID")
        return f"{name}-{safe(trial)}" if trial else name
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task and task not in re.findall(r"\d+", name):
        return f"{name}-task{safe(task)}"
    return name


def _check_targets(
    values: Mapping[str, Any], origins: Origins, known: Sequence[Problem], foreign: Foreign | None
) -> list[Problem]:
    """Targets that cannot be imported, and arguments that they do not take. Imports them, and so
    torch.
    """
    problems = []
    for key in FUNCTIONS:
        try:
            if values[key] and (foreign is None or key in foreign.needed):
                resolve(values[key], "train.data")
        except TargetError as error:
            problems.append(Problem(origins(key), key, str(error)))
    for section, key in TARGETS.items():
        if not fresh([Problem("", key, "")], known) or (
            foreign is not None and key not in foreign.needed
        ):
            continue
        try:
            target = (
                resolve(values[key], HOMES[section])
                if section in HOMES
                else resolve_source(values[key])
            )
        except TargetError as error:
            problems.append(Problem(origins(key), key, str(error)))
            continue
        if target is None:
            continue
        args = values[f"{section}.args"]
        for argument, text in check_arguments(target, args, GIVEN.get(section, ())):
            place = f"{section}.args.{argument}"
            problems.append(Problem(origins(place if argument in args else key), place, text))
        if section == "optimizer":
            problems += _check_groups(target, values, origins)
    return problems


def _check_groups(
    target: Callable[..., Any], values: Mapping[str, Any], origins: Origins
) -> list[Problem]:
    """torch takes any key in a group of parameters, and lets it be."""
    asked = [
        (f"optimizer.groups[{i}].args", group["args"])
        for i, group in enumerate(values["optimizer.groups"])
    ]
    if values["optimizer.no_decay"]:
        asked.append(("optimizer.no_decay", {"weight_decay": 0.0}))
    return [
        Problem(origins(place.partition("[")[0]), place, text)
        for place, args in asked
        for _, text in check_arguments(target, args, GIVEN["optimizer"])
    ]
