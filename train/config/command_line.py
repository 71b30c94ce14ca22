"""The command line: CONFIG, key=value and a few options, in any order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from train.config.hints import nearest
from train.config.keys import TYPES, Path
from train.config.merge import Layer, flatten
from train.config.problems import ConfigError, Problem
from train.config.spelling import misspelt
from train.config.yaml_text import Loader
from train.installation import find_config

WHERE = "command line"

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


@dataclass(frozen=True)
class CommandLine:
    path: FilePath
    overrides: tuple[str, ...]
    flags: frozenset[str]
    layer: Layer
    problems: list[Problem]
    """Arguments that make no sense."""


def parse(argv: Sequence[str]) -> CommandLine:
    """Sorts the arguments. Prints the usage and exits if there are none, or for --help.

    Raises ConfigError unless one config is named.
    """
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE)
        raise SystemExit(0 if argv else 2)
    dashed = [argument for argument in argv if argument.startswith("-")]
    plain = [argument for argument in argv if not argument.startswith("-")]
    files = [argument for argument in plain if _is_file_name(argument)]
    overrides = [argument for argument in plain if not _is_file_name(argument)]
    problems = [_refused(argument) for argument in dashed if argument not in OPTIONS]
    if len(files) != 1 and not problems:
        got = " and ".join(files) or "none"
        fix = (
            f"For a key, write {files[-2]}={files[-1]}"
            if files
            else "Name one, such as configs/digits.yaml"
        )
        problems.append(Problem(WHERE, "", f"it takes one config; got {got}. {fix}"))
    values: dict[Path, Any] = {}
    edits: list[tuple[Path, Any]] = []
    for override in overrides:
        setting = _setting(override)
        if isinstance(setting, Problem):
            problems.append(setting)
        elif any(isinstance(part, int) or str(part).isdigit() for part in setting[0]):
            edits.append(setting)
        else:
            values |= _nested(*setting)
    if len(files) != 1:
        raise ConfigError(problems)
    layer = Layer(WHERE, values, edits)
    return CommandLine(
        find_config(FilePath(files[0])), tuple(overrides), frozenset(dashed), layer, problems
    )


def _is_file_name(argument: str) -> bool:
    """A path may hold an equals sign too: runs/lr=1/config.yaml."""
    return "=" not in argument or (
        argument.endswith((".yaml", ".yml")) and FilePath(argument).is_file()
    )


def _refused(option: str) -> Problem:
    key, equals, value = option.lstrip("-").partition("=")
    near = (key,) if key in TYPES else nearest(key)
    if near:
        fix = f"keys have no dashes: write {near[0]}={value if equals else 'VALUE'}"
    else:
        fix = f"there is no such option. The options are: {', '.join(OPTIONS)}, --help"
    return Problem(WHERE, "", f"got {option}; {fix}")


def _setting(override: str) -> tuple[Path, Any] | Problem:
    """A key=value in parts; the value as OmegaConf parses it (1e-8 is a number), or what is wrong
    with it.
    """
    key, _, text = override.partition("=")
    if re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*", key) is None:
        return Problem(
            WHERE,
            "",
            f"got {override}; a key is written section.name=value or section.name[0]=value",
        )
    if key == "extends":
        return Problem(
            WHERE, key, "only a file extends others. Write it there, or name another CONFIG"
        )
    if not text.strip():
        return Problem(
            WHERE,
            key,
            f"got no value. To unset it, write {key}=null; for an empty text, {key}='\"\"'",
        )
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (YAMLError, OmegaConfBaseException) as error:
        return Problem(
            WHERE, key, f"got {text}; it is not valid YAML: {str(error).splitlines()[0]}. Quote it"
        )
    assert isinstance(parsed, dict)
    path = tuple(
        int(part[1:-1]) if part[0] == "[" else part
        for part in re.findall(r"\[\d+\]|[^.\[\]]+", key)
    )
    for wrong in misspelt(text, Loader, tuple(part for part in path if isinstance(part, str))):
        return Problem(
            WHERE, key, f"{wrong.sentence}. Type: '{key}={text.replace(wrong.text, wrong.instead)}'"
        )
    return path, parsed["value"]


def _nested(path: Path, value: Any) -> dict[Path, Any]:
    for part in reversed(path):
        value = {part: value}
    return flatten(value)
