"""YAML files to layers: OmegaConf's own loader, `extends`, and errors that name file and line."""

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from train.config.home import expand
from train.config.keys import dotted
from train.config.merge import Layer, flatten
from train.config.problems import ConfigError, Problem, closest
from train.config.spelling import misspelt
from train.config.yaml_text import Loader, yaml_text
from train.installation import CONFIGS
from train.redaction import learn

NOT_RUNS = {"accelerate", "sweeps"}
"""Folders of configs/ that hold other files than configs of runs."""


def read_layers(path: Path) -> list[Layer]:
    """The file and all that it extends, lowest first.

    Raises ConfigError with all files that cannot be read.
    """
    problems: list[Problem] = []
    layers = _read(path, (), problems)
    if problems:
        raise ConfigError(problems)
    return layers


def _read(path: Path, chain: tuple[Path, ...], problems: list[Problem]) -> list[Layer]:
    """`chain`: the files that led to this one, each extending the next."""
    # By what the paths stand for: a link, or `../configs/x.yaml`, leads back as well.
    if path.resolve() in (file.resolve() for file in chain):
        shown = " -> ".join(str(file) for file in (*chain, path))
        text = f"the files extend each other: {shown}. Take one out"
        problems.append(Problem(str(chain[-1]), "extends", text))
        return []
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        text = f"there is no file {path}{_suggestion(path)}"
        # The file that names the missing one is at fault.
        if chain:
            problems.append(Problem(str(chain[-1]), "extends", text))
        else:
            problems.append(Problem("command line", "", text))
        return []
    except ConfigError as error:
        # The other files are read all the same, so that all problems come at once.
        problems += error.problems
        return []
    parents = values.pop("extends", None) or []
    if isinstance(parents, str):
        parents = [parents]
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        text = f"got {parents!r}; it takes a path or a list of paths"
        problems.append(Problem(str(path), "extends", text))
        return []
    layers = [Layer(str(path), flatten(values))]
    # Later parents lie above earlier ones, and the file lies above all.
    for parent in reversed(parents):
        # Relative to the file that names it, wherever the run starts.
        below = Path(os.path.normpath(path.parent / expand(parent)))
        layers = [*_read(below, (*chain, path), problems), *layers]
    return layers


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a file, interpolations left alone.

    Raises FileNotFoundError, or ConfigError if the file holds no mapping.
    """
    try:
        return _parsed(path)
    # Named before OSError, of which it is one: the caller knows who named the missing file.
    except (FileNotFoundError, ConfigError):
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        # The names of aliases and tags are words of a file that may be no YAML at all.
        problem = re.sub(r"(alias|handle) .+", r"\1", str(error.problem))
        text = f"{problem}{_yaml_hint(error)}"
        raise ConfigError([Problem(f"{path}{line}", "", text)]) from error
    except OmegaConfBaseException as error:
        text = f"{str(error.msg or error).splitlines()[0]}. An interpolation is written ${{key}}"
        raise ConfigError([Problem(str(path), str(error.full_key or ""), text)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), "", "is nested too deep")]) from error
    except (OSError, ValueError, YAMLError) as error:
        text = (
            f"cannot be read as YAML: {error}. It must be UTF-8 text with one `key: value` per line"
        )
        raise ConfigError([Problem(str(path), "", text)]) from error


def _parsed(path: Path) -> dict[Any, Any]:
    """Parsed twice: by PyYAML for what it reads otherwise than written, then by OmegaConf."""
    text = yaml_text(path)
    plain = yaml.load(text, Loader)
    # Before a message can show a value: what looks like a secret is known from here on.
    learn(plain)
    if plain is not None and not isinstance(plain, dict):
        kind = "a list" if isinstance(plain, list) else "one text or number"
        what = f"holds {kind}, not a mapping. Write `key: value` lines"
        raise ConfigError([Problem(str(path), "", what)])
    # Before OmegaConf, which has made numbers of them and keeps no lines.
    misspellings = [
        Problem(f"{path}:{each.line}", dotted(each.path), each.sentence)
        for each in misspelt(text, Loader)
    ]
    if misspellings:
        raise ConfigError(misspellings)
    # The text, not the file: a pipe can be read only once.
    loaded = OmegaConf.load(io.StringIO(text))
    if not isinstance(loaded, DictConfig) or not loaded:
        what = "is empty. Write at least one `key: value` line"
        raise ConfigError([Problem(str(path), "", what)])
    # Interpolations stay: one may name a key of another layer, or a secret of the environment.
    values = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(values, dict)
    return values


def _yaml_hint(error: MarkedYAMLError) -> str:
    if "duplicate key" in str(error.problem):
        return ". Keep one of the two"
    if "cannot start any token" in str(error.problem):
        return (
            ". YAML indents with spaces, and a value that begins with a special character needs "
            "quotes"
        )
    return f" ({error.context})" if error.context else ""


def _suggestion(path: Path) -> str:
    """The existing config nearest in name, and where one would look for it."""
    # Of files with the same stem, the first in alphabetical order.
    files = {file.stem.lower(): file for file in sorted(_candidates(path), reverse=True)}
    near = closest(path.stem, files)
    if near is not None:
        return f"; did you mean {files[near]}?"
    return f". Name a YAML file, such as configs/digits.yaml (those of Isobatch are in {CONFIGS})"


def _candidates(path: Path) -> Iterable[Path]:
    yield from (Path("configs", file.name) for file in CONFIGS.glob("*.yaml"))
    for pattern in ("*.yaml", "configs/**/*.yaml", "my/**/*.yaml"):
        yield from (file for file in Path().glob(pattern) if not NOT_RUNS.intersection(file.parts))
    if path.parent.is_dir():
        yield from path.parent.glob("*.yaml")
