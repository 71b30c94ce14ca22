"""What the config of a run folder may name without being trusted: its targets are looked at before
they are called.

A config is code: `os.system` is a function like any other. One's own YAML is what one has written;
a folder may come from anybody.
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from train.config.command_line import WHERE
from train.config.convert import Origins
from train.config.targets import TargetError, is_named_function, resolve
from train.errors import UserError
from train.redaction.names import Grade, grade

HOMES = {
    "model.target": "train.models",
    "task.target": "train.tasks",
    "data.source": "train.data",
    "data.transform": "train.data",
    "data.eval_transform": "train.data",
    "data.tokenizer": "train.data.tokenizers",
}
LIBRARIES = ("torch.nn.", "torchvision.models.", "timm.models.", "transformers.")
"""What is installed: a model may be a subclass of torch.nn.Module in there."""
UNSAFE_READERS = frozenset({"pandas", "sql", "spark", "generator", "cache"})
"""Builders of datasets that unpickle, or run what they are given."""
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)")


class NotTrusted(UserError):
    """A run folder whose config names what is not known to be harmless; the message says what would
    be called.
    """


@dataclass(frozen=True)
class Foreign:
    """A run folder whose config is about to be used."""

    folder: Path
    needed: frozenset[str]
    """The keys whose targets are called; the others are not even imported."""
    trusted: bool
    how: str
    """What to type to trust it."""


def check_trusted(
    values: Mapping[str, Any], unresolved: Any, origins: Origins, foreign: Foreign
) -> None:
    """Raises NotTrusted. What the user has typed beside the folder is the user's own."""
    if foreign.trusted:
        return
    found: list[str] = []
    for key in sorted(foreign.needed):
        if values[key] and origins(key) != WHERE:
            found += _of_target(key, str(values[key]), foreign.folder)
    sections = {key.split(".")[0] for key in foreign.needed}
    for section in sorted(sections):
        given = values.get(f"{section}.args", {})
        found += [f"{section}.args.{name} {why}" for name, why in _of_arguments(given)]
        found += _of_variables(section, unresolved[section])
    if not found:
        return
    lines = "\n".join(f"  {each}" for each in found)
    raise NotTrusted(
        f"{foreign.folder} is not trusted: its config names what this package does not know to be "
        f"harmless:\n{lines}\nWhere you know who made the folder, type: {foreign.how}"
    )


def needs_trust(targets: Mapping[str, str], folder: Path) -> bool:
    """Whether `train.evaluate` of this folder will ask for --trust; `targets` by their keys."""
    return any(_of_target(key, target, folder) for key, target in targets.items() if target)


def _of_target(key: str, target: str, folder: Path) -> list[str]:
    if _names_data(key, target):
        return [f"{key}={target} runs code"] if target in UNSAFE_READERS else []
    why = _distrust(key, target, folder)
    return [f"{key}={target} would be imported and called: {why}"] if why else []


def _names_data(key: str, target: str) -> bool:
    """A file, a folder or a name of the hub instead of a function."""
    if key == "data.source":
        return not is_named_function(target)
    return key == "data.tokenizer" and Path(target).is_dir()


def _distrust(key: str, target: str, folder: Path) -> str:
    """Why a target is not called; empty where it may be."""
    home = HOMES[key]
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        return "it is no name"
    if len(parts) == 1 or target.startswith(f"{home}."):
        # No further down: train.models.hf.torch.hub.load is an attribute of ours, too.
        deep = len(parts) > len(home.split(".")) + 2
        return "it is no part of this package" if deep else _distrust_own(key, target, home)
    if _is_in_my(parts[0], folder):
        found = _resolved(target, home)
        module = str(getattr(found, "__module__", ""))
        own = module.split(".")[0] == parts[0] and not isinstance(found, ModuleType)
        return "" if own else "it is not defined in my/"
    if key == "model.target" and target.startswith(LIBRARIES):
        found = _resolved(target, home)
        own = _is_module_class(found) and found.__module__.split(".")[0] == parts[0]
        return "" if own else "it is no subclass of torch.nn.Module"
    return "it is neither of this package, nor of my/, nor a model of an installed library"


def _distrust_own(key: str, target: str, home: str) -> str:
    """Of this package: a class of the right kind, or the function that its file is named after."""
    found = _resolved(target, home)
    module = str(getattr(found, "__module__", ""))
    if module == "torch.optim" or not f"{module}.".startswith(f"{home}."):
        return f"it is not defined in {home}"
    named_after = (
        str(getattr(found, "__name__", "")).lower()
        == module.rpartition(".")[2].replace("_", "").lower()
    )
    if inspect.isclass(found):
        right = (
            _is_module_class(found)
            if key == "model.target"
            else not issubclass(found, BaseException)
        )
        return "" if right else "it is of another kind"
    transform = key in ("data.transform", "data.eval_transform") and module == "train.data.augment"
    return "" if (named_after or transform) and inspect.isfunction(found) else "it is a helper"


def _resolved(target: str, home: str) -> Any:
    """None where there is no such thing: the config's own check says so."""
    try:
        return resolve(target, home)
    except TargetError:
        return None


def _is_module_class(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, importlib.import_module("torch").nn.Module)


def _is_in_my(name: str, folder: Path) -> bool:
    """Whether a module lies in my/ of the current folder, or of the clone, and not in the foreign
    folder.
    """
    folders = [Path("my").resolve(), Path(__file__).resolve().parents[2] / "my"]
    mine = [each for each in folders if not each.is_relative_to(folder.resolve())]
    if name == "train":
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    return bool(places) and all(_is_below(Path(place).resolve(), mine) for place in places)


def _is_below(place: Path, folders: Sequence[Path]) -> bool:
    return any(place.is_relative_to(folder) for folder in folders)


def _of_arguments(args: Any) -> Iterator[tuple[str, str]]:
    """Arguments by which transformers and datasets run code of others."""
    if isinstance(args, Mapping):
        for name, value in args.items():
            code = name in ("trust_remote_code", "use_kernels") and value not in (False, None)
            kernel = str(name).endswith("_implementation") and "/" in str(value)
            pickle = name in ("weights_only", "use_safetensors") and value is False
            if code or kernel or pickle:
                yield str(name), f"= {value} runs code that comes with the weights"
            yield from ((f"{name}.{inner}", why) for inner, why in _of_arguments(value))
    elif isinstance(args, list):
        for item in args:
            yield from _of_arguments(item)


def _of_variables(key: str, value: Any) -> list[str]:
    """A secret of the environment that is spliced into something else: an address, say."""
    if isinstance(value, Mapping):
        return [
            line for name, item in value.items() for line in _of_variables(f"{key}.{name}", item)
        ]
    if isinstance(value, list):
        return [line for item in value for line in _of_variables(key, item)]
    names = _VARIABLE.findall(value) if isinstance(value, str) else []
    alone = (
        isinstance(value, str)
        and re.fullmatch(r"\$\{[\w.:]+\}", value)
        and grade(key) is not Grade.NO
    )
    secret = [name for name in names if grade(name) is not Grade.NO]
    return [f"{key} takes the variable {name}" for name in secret] if not alone else []
