"""The command line: CONFIG, key=value and a few options, in any order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from train.config.hints import nearest
from train.config.keys import KEYS, KeyPath
from train.config.merge import Layer, flatten
from train.config.problems import ConfigError, Problem
from train.config.spelling import misspelt
from train.config.yaml_text import Loader
from train.installation import find_config

WHERE = "command line"

_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")
"""section.name, section.name[0]"""
_PART = re.compile(r"\[\d+\]|[^.\[\]]+")

OPTIONS: dict[str, str] = {
    "--plan": "print the plan of the run and stop",
    "--smoke": "two steps of everything in under a minute; keeps nothing",
    "--print-config": "print the resolved config and stop",
}

USAGE = "\n".join(
    [
        "usage: CONFIG [key=value ...] [option ...]",
        "  CONFIG             a YAML file, such as configs/digits.yaml",
        "  key=value          sets a key above the file: batch.micro=8, model.args.hidden[0]=64, "
        "name=null",
        *(f"  {option:<18} {text}" for option, text in OPTIONS.items()),
        "  -h, --help         print this and stop",
    ]
)


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    path: Path
    """The config file."""
    overrides: tuple[str, ...]
    """The key=value arguments."""
    flags: frozenset[str]
    """The options."""
    layer: Layer
    """The overrides, parsed."""
    problems: list[Problem]
    """Arguments that make no sense."""


def parse(argv: Sequence[str]) -> CommandLine:
    """Sorts the arguments. Prints the usage and exits if there are none, or for --help.

    Raises ConfigError unless one config is named.
    """
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        raise SystemExit(0 if argv else 2)
    options: list[str] = []
    files: list[str] = []
    overrides: list[str] = []
    for argument in argv:
        if argument.startswith("-"):
            options.append(argument)
        elif _is_file_name(argument):
            files.append(argument)
        else:
            overrides.append(argument)
    problems = [_unknown_option(option) for option in options if option not in OPTIONS]
    # After an unknown option its value may look like a second file.
    if len(files) != 1 and not problems:
        problems.append(_not_one_file(files))
    values: dict[KeyPath, Any] = {}
    edits: list[tuple[KeyPath, Any]] = []
    for override in overrides:
        setting = _setting(override)
        if isinstance(setting, Problem):
            problems.append(setting)
            continue
        path, value = setting
        # An index can only be applied to the list that the layers below have made.
        if any(isinstance(part, int) or str(part).isdigit() for part in path):
            edits.append(setting)
        else:
            # Of one key that is given twice, the later word counts.
            values |= _nested(path, value)
    # Without one config there is nothing that the rest could be checked against.
    if len(files) != 1:
        raise ConfigError(problems)
    return CommandLine(
        path=find_config(Path(files[0])),
        overrides=tuple(overrides),
        flags=frozenset(options),
        layer=Layer(WHERE, values, edits),
        problems=problems,
    )


def _is_file_name(argument: str) -> bool:
    """Whether it is a config, not a key=value. A path may hold an equals sign too: runs/lr=1/."""
    if "=" not in argument:
        return True
    return argument.endswith((".yaml", ".yml")) and Path(argument).is_file()


def _not_one_file(files: Sequence[str]) -> Problem:
    if files:
        # The words of `key value`, without an equals sign.
        got = " and ".join(files)
        fix = f"For a key, write {files[-2]}={files[-1]}"
    else:
        got = "none"
        fix = "Name one, such as configs/digits.yaml"
    return Problem(WHERE, "", f"it takes one config; got {got}. {fix}")


def _unknown_option(option: str) -> Problem:
    key, equals, value = option.lstrip("-").partition("=")
    # As other trainers take it; OmegaConf would silently make a key of --optimizer.lr=1.
    near = (key,) if key in KEYS else nearest(key)
    if near:
        fix = f"keys have no dashes: write {near[0]}={value if equals else 'VALUE'}"
    else:
        fix = f"there is no such option. The options are: {', '.join(OPTIONS)}, --help"
    return Problem(WHERE, "", f"got {option}; {fix}")


def _setting(override: str) -> tuple[KeyPath, Any] | Problem:
    """A key=value in parts, or what is wrong with it."""
    key, _, text = override.partition("=")
    if _KEY.fullmatch(key) is None:
        how = "a key is written section.name=value or section.name[0]=value"
        return Problem(WHERE, "", f"got {override}; {how}")
    if key == "extends":
        how = "only a file extends others. Write it there, or name another CONFIG"
        return Problem(WHERE, key, how)
    if not text.strip():
        how = f"To unset it, write {key}=null; for an empty text, {key}='\"\"'"
        return Problem(WHERE, key, f"got no value. {how}")
    try:
        # By OmegaConf, for which 1e-8 is a number. For PyYAML it is text.
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (YAMLError, OmegaConfBaseException) as error:
        why = f"it is not valid YAML: {str(error).splitlines()[0]}"
        return Problem(WHERE, key, f"got {text}; {why}. Quote it")
    assert isinstance(parsed, dict)
    path = _path(key)
    # The schema has no types of single elements: those of the list decide.
    names = tuple(part for part in path if isinstance(part, str))
    for wrong in misspelt(text, Loader, names):
        # In quotes for the shell, since the replacement may hold quotes itself.
        line = f"{key}={text.replace(wrong.text, wrong.replacement)}"
        return Problem(WHERE, key, f"{wrong.sentence}. Set: '{line}'")
    return path, parsed["value"]


def _path(key: str) -> KeyPath:
    """section.name[0] -> ("section", "name", 0)"""
    return tuple(int(part[1:-1]) if part[0] == "[" else part for part in _PART.findall(key))


def _nested(path: KeyPath, value: Any) -> dict[KeyPath, Any]:
    for part in reversed(path):
        value = {part: value}
    # A value may be a mapping, which is several settings.
    return flatten(value)
