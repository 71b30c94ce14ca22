"""What the config of a run folder may name without being trusted: checked before it is called.

A config is code: `os.system` is a function like any other. A YAML file of one's own is what one has
written; a run folder may come from anybody.
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
    """A run folder whose config names what may do harm; the message lists what would be called."""


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
    """Raises NotTrusted. What the user has typed beside the folder is trusted."""
    if foreign.trusted:
        return
    reasons: list[str] = []
    for key in sorted(foreign.needed):
        # What the user types beside the folder is the user's own.
        if values[key] and origins(key) != WHERE:
            reasons += _of_target(key, str(values[key]), foreign.folder)
    sections = {key.split(".")[0] for key in foreign.needed}
    for section in sorted(sections):
        args = values.get(f"{section}.args", {})
        reasons += [f"{section}.args.{name} {why}" for name, why in _of_arguments(args)]
        reasons += _of_variables(section, unresolved[section])
    if not reasons:
        return
    lines = "\n".join(f"  {reason}" for reason in reasons)
    raise NotTrusted(
        f"{foreign.folder} is not trusted: its config names what this package does not know to be "
        f"harmless:\n{lines}\nWhere you know who made the folder, type: {foreign.how}"
    )


def needs_trust(targets: Mapping[str, str], folder: Path) -> bool:
    """Whether `train.evaluate` of this folder will ask for --trust; `targets` by their keys."""
    return any(_of_target(key, target, folder) for key, target in targets.items() if target)


def _of_target(key: str, target: str, folder: Path) -> list[str]:
    if _names_data(key, target):
        # What names data is read, not called, but for a few builders of datasets.
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
    # A bare name is looked up in this package alone (targets.py).
    if len(parts) == 1 or target.startswith(f"{home}."):
        # No further down than a module's attribute: train.models.hf.torch.hub.load begins with
        # this package as well.
        if len(parts) > len(home.split(".")) + 2:
            return "it is no part of this package"
        return _distrust_own(key, target, home)
    if _is_in_my(parts[0], folder):
        # `from os import system` makes a name in my/, too: where it is defined counts.
        resolved = _resolved(target, home)
        module = str(getattr(resolved, "__module__", ""))
        is_defined_there = module.split(".")[0] == parts[0]
        if is_defined_there and not isinstance(resolved, ModuleType):
            return ""
        return "it is not defined in my/"
    if key == "model.target" and target.startswith(LIBRARIES):
        resolved = _resolved(target, home)
        # Where it is defined: a module of a library also holds what it imports from others.
        if _is_module_class(resolved) and resolved.__module__.split(".")[0] == parts[0]:
            return ""
        return "it is no subclass of torch.nn.Module"
    return "it is neither of this package, nor of my/, nor a model of an installed library"


def _distrust_own(key: str, target: str, home: str) -> str:
    """Of this package: a class of the right kind, or the function that its file is named after."""
    resolved = _resolved(target, home)
    module = str(getattr(resolved, "__module__", ""))
    if module == "torch.optim" or not f"{module}.".startswith(f"{home}."):
        return f"it is not defined in {home}"
    if inspect.isclass(resolved):
        if key == "model.target":
            is_right_kind = _is_module_class(resolved)
        else:
            is_right_kind = not issubclass(resolved, BaseException)
        return "" if is_right_kind else "it is of another kind"
    # A function that its file is named after is meant to be called by a config. The others of this
    # package are helpers, which may write files.
    file = module.rpartition(".")[2].replace("_", "").lower()
    is_named_after = str(getattr(resolved, "__name__", "")).lower() == file
    transforms = ("data.transform", "data.eval_transform")
    is_transform = key in transforms and module == "train.data.augment"
    if inspect.isfunction(resolved) and (is_named_after or is_transform):
        return ""
    return "it is a helper"


def _resolved(target: str, home: str) -> Any:
    """None where there is no such thing, which the config's own check reports."""
    try:
        return resolve(target, home)
    except TargetError:
        return None


def _is_module_class(value: Any) -> bool:
    # Only here: judging a name should not cost the import of torch.
    return inspect.isclass(value) and issubclass(value, importlib.import_module("torch").nn.Module)


def _is_in_my(name: str, folder: Path) -> bool:
    """Whether a module lies in my/ of the current folder or the clone, and not in `folder`."""
    candidates = [Path("my").resolve(), Path(__file__).resolve().parents[2] / "my"]
    # A my/ that came with the folder is not the user's own.
    mine = [each for each in candidates if not each.is_relative_to(folder.resolve())]
    if name == "train":
        return False
    try:
        # `name` is without dots, and so nothing is imported here.
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    # A folder without __init__.py has places to search, and no file of its own.
    files = [*(spec.submodule_search_locations or ())]
    if spec.origin:
        files.append(spec.origin)
    # All places: a package may be spread over several folders.
    return bool(files) and all(_is_below(Path(file).resolve(), mine) for file in files)


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _of_arguments(args: Any) -> Iterator[tuple[str, str]]:
    """Arguments by which transformers and datasets run code of others."""
    if isinstance(args, Mapping):
        for name, value in args.items():
            if _runs_code(str(name), value):
                yield str(name), f"= {value} runs code that comes with the weights"
            # They may be nested: a model hands some on to a library.
            for inner, why in _of_arguments(value):
                yield f"{name}.{inner}", why
    elif isinstance(args, list):
        for item in args:
            yield from _of_arguments(item)


def _runs_code(name: str, value: Any) -> bool:
    if name in ("trust_remote_code", "use_kernels"):
        return value not in (False, None)
    # attn_implementation=someone/kernel: transformers downloads it.
    if name.endswith("_implementation"):
        return "/" in str(value)
    # Weights that are unpickled.
    return name in ("weights_only", "use_safetensors") and value is False


def _of_variables(key: str, value: Any) -> list[str]:
    """Secrets of the environment that are spliced into something else, such as an address."""
    if isinstance(value, Mapping):
        lines: list[str] = []
        for name, item in value.items():
            lines += _of_variables(f"{key}.{name}", item)
        return lines
    if isinstance(value, list):
        return [line for item in value for line in _of_variables(key, item)]
    if not isinstance(value, str):
        return []
    # `api_key: ${oc.env:HF_TOKEN}` passes a secret where one belongs.
    is_alone = re.fullmatch(r"\$\{[\w.:]+\}", value) is not None
    if is_alone and grade(key) is not Grade.NO:
        return []
    secret = [name for name in _VARIABLE.findall(value) if grade(name) is not Grade.NO]
    return [f"{key} takes the variable {name}" for name in secret]
