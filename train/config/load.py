"""load(argv): defaults < extends < YAML < key=value, checked in full before anything starts."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from train.config.check import check
from train.config.check_names import check_letters
from train.config.check_targets import check_targets
from train.config.command_line import parse
from train.config.convert import Origins, convert, missing, resolve_values
from train.config.hints import find_unknown
from train.config.home import with_home
from train.config.merge import merge
from train.config.names import safe, short_form
from train.config.problems import ConfigError, Problem, fresh
from train.config.read import read_layers
from train.config.schema import PRECISIONS, Config
from train.config.targets import make_importable
from train.config.trust import Foreign, check_trusted
from train.redaction import REDACTED, clean, learn


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
        """All keys, defaults included. Interpolations stay as written: they may name secrets."""
        return self.unresolved


def load(argv: Sequence[str], foreign: Foreign | None = None) -> Loaded:
    """The config that a command line asks for.

    `foreign`: it is that of a run folder, and its targets are checked before they are imported.
    Raises ConfigError with all its problems, NotTrusted for what a foreign one must not name.
    """
    # First: such a word could be written into no file, and into no message.
    check_letters(argv)
    command = parse(argv)
    layers = [with_home(layer) for layer in [*read_layers(command.path), command.layer]]
    # For check_targets, below.
    make_importable()

    # All problems are reported at once, without those that only follow from another one. So each
    # stage adds to `problems`, and what is wrong keeps its default for the stages after it.
    settings, misplaced = merge(layers)
    origins = Origins(settings, str(command.path))
    problems = [*command.problems]
    for layer in layers:
        problems += find_unknown(layer, settings)
    problems += fresh(misplaced, problems)
    structured, wrong_types = convert(settings, origins)
    problems += wrong_types
    problems += fresh(missing(settings, origins), problems)
    values, unresolvable = resolve_values(structured, origins)
    # Resolving interpolations may have brought in secrets of the environment.
    learn(values)
    problems += fresh(unresolvable, problems)
    findings = [Problem(origins(key), key, text) for key, text in check(values)]
    problems += fresh(findings, problems)
    if foreign is not None:
        # Before check_targets, which imports. A config with problems cannot be judged: nothing that
        # it names is imported.
        if problems:
            raise ConfigError(problems)
        check_trusted(values, OmegaConf.to_container(structured, resolve=False), origins, foreign)
    # --print-config answers at once: importing the targets would import torch.
    if "--print-config" not in command.flags:
        problems += fresh(check_targets(values, origins, problems, foreign), problems)
    if problems:
        raise ConfigError(problems)
    return Loaded(
        config=_to_config(structured),
        path=command.path,
        overrides=command.overrides,
        flags=command.flags,
        unresolved=OmegaConf.to_yaml(structured),
    )


def _to_config(structured: DictConfig) -> Config:
    """The dataclasses, with the short names of precisions."""
    config = cast(Config, OmegaConf.to_object(structured))
    model = config.model
    if model.dtype is not None:
        model = dataclasses.replace(model, dtype=PRECISIONS.get(model.dtype, model.dtype))
    precision = PRECISIONS.get(config.precision, config.precision)
    return dataclasses.replace(config, precision=precision, model=model)


def run_name(loaded: Loaded) -> str:
    """The name that the config states, or its stem and a short form of the overrides.

    Under a W&B sweep the trial's id follows, which all ranks inherit: two trials never share a
    folder, and a restarted trial finds its own. In a SLURM array the number of the task follows,
    where the name does not hold it yet (`seed=%a`, scripts/slurm.sbatch).
    """
    # It names a folder, and goes to W&B: a secret that is spliced into it must not.
    stated = loaded.config.name and clean(loaded.config.name).replace(REDACTED, "redacted")
    name = stated or short_form(loaded.path.stem, clean(loaded.overrides))
    if os.environ.get("WANDB_SWEEP_ID"):
        trial = os.environ.get("WANDB_RUN_ID")
        return f"{name}-{safe(trial)}" if trial else name
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    # As a whole number: task 1 is not in seed12.
    if task and task not in re.findall(r"\d+", name):
        return f"{name}-task{safe(task)}"
    return name
