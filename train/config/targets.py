"""Targets: what `model.target` and its like name, and whether it takes the arguments that it is
given.

A bare name is looked up by file name, without a registry: `causal_lm` in train.models is CausalLM
in train/models/causal_lm.py; where there is no such file, an attribute of the home itself
(torch.optim.AdamW).
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import random
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, cast

FILES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
"""{ending of a data file: the name that datasets has for what reads it}."""


class TargetError(Exception):
    """A target that cannot be used; the message says why and what is near."""


def make_importable() -> None:
    """Lets targets name modules of the current folder and of my/ in it; installed packages come
    first.
    """
    for folder in (Path.cwd(), Path.cwd() / "my"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def resolve(target: str, home: str) -> Callable[..., Any]:
    """The class or function that a target names.

    Raises TargetError.
    """
    if not _is_dotted(target):
        raise TargetError(
            f"got {target!r}; it takes a name or a dotted path, such as package.module.Name"
        )
    found = _dotted(target) if "." in target else _short(target, home)
    if not callable(found):
        raise TargetError(
            f"{target} is a {type(found).__name__}; it must be a class or a "
            f"function{_list(_defined(found))}"
        )
    return found


def resolve_source(source: str) -> Callable[..., Any] | None:
    """The function that a data source names; None for a file, a folder or a name for
    datasets.load_dataset.

    Raises TargetError.
    """
    if not is_named_function(source):
        return None
    if "." in source:
        return resolve(source, "")
    return _match(_import(f"train.data.{source}"), source)


def resolve_tokenizer(tokenizer: str) -> Callable[..., Any] | None:
    """The class that a tokenizer names; None for a folder, of one that was saved.

    Raises TargetError.
    """
    return None if Path(tokenizer).is_dir() else resolve(tokenizer, "train.data.tokenizers")


def is_named_function(source: str) -> bool:
    """Whether a data source is the name of a function; of ours, or with dots. Imports nothing but
    our own.
    """
    if not _is_dotted(source) or Path(source).exists() or Path(source).suffix.lower() in FILES:
        return False
    return "." in source or _has_module(_import("train.data"), source)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def check_arguments(
    target: Callable[..., Any], args: Mapping[str, Any], given: Collection[str] = ()
) -> list[tuple[str, str]]:
    """(argument, what is wrong) where keywords do not fit a signature; `given` are
    passed besides.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return []
    name = getattr(target, "__name__", repr(target))
    keywords = {parameter.name: parameter for parameter in parameters if _by_keyword(parameter)}
    accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    own = [key for key in keywords if key not in given]
    takes = f"It takes: {', '.join(own)}" if own else "It takes none"
    wrong = []
    for key in args:
        if key in given:
            wrong.append((key, f"{name} is given {key!r} by Isobatch itself. Leave it out"))
        elif key not in keywords and not accepts_all:
            wrong.append(
                (key, f"{name} takes no argument {key!r}{_did_you_mean(key, own)} {takes}")
            )
    for key in own:
        if keywords[key].default is inspect.Parameter.empty and key not in args:
            wrong.append((key, f"{name} needs the argument {key!r}, which is not given. {takes}"))
    return wrong


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _short(name: str, home: str) -> Callable[..., Any]:
    package = _import(home)
    module = _import(f"{home}.{name}") if _has_module(package, name) else package
    found = _match(module, name)
    if found is not None:
        return found
    if module is not package:
        wanted = name.replace("_", "").lower()
        raise TargetError(
            f"{_file(module)} has no class or function named {wanted}{_list(_defined(module))}"
        )
    known = [*_modules(package), *(attribute.lower() for attribute in _defined(package))]
    raise TargetError(
        f"{home} has no {name!r}{_did_you_mean(name, known)} A dotted path names your own"
    )


def _match(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """The class or function whose name is `name` in lower case and without underscores."""
    for attribute, value in sorted(vars(module).items()):
        if attribute.replace("_", "").lower() == name.replace("_", "").lower() and callable(value):
            return cast(Callable[..., Any], value)
    return None


def _dotted(target: str) -> Any:
    first, *rest = target.split(".")
    if first not in sys.modules and importlib.util.find_spec(first) is None:
        known = [module.name for module in pkgutil.iter_modules()]
        raise TargetError(f"there is no module {first!r}{_did_you_mean(first, known)}")
    found: Any = _import(first)
    for position, part in enumerate(rest, start=1):
        is_module = _has_module(found, part)
        if is_module and (position < len(rest) or not callable(getattr(found, part, None))):
            found = _import(f"{found.__name__}.{part}")
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            path = ".".join([first, *rest[: position - 1]])
            raise TargetError(
                f"{path} has no {part!r}{_did_you_mean(part, [*_modules(found), *dir(found)])}"
            )
    return found


def _import(name: str) -> ModuleType:
    """Imports a module; an error in it is told as what it is, with its place.

    A module of the user's may draw random numbers while it is imported: those of a constant, in
    every process.
    """
    if name not in sys.modules:
        _set_generators()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith("<")
        ]
        place = f"{os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{os.path.relpath(error.filename)}:{error.lineno}"
        raise TargetError(
            f"importing {name} failed: {type(error).__name__}: {error} ({place})"
        ) from error


def _set_generators() -> None:
    """Those that are there: NumPy and torch are not imported for it."""
    random.seed(0)
    for library, function in (("numpy", "random.seed"), ("torch", "manual_seed")):
        module = sys.modules.get(library)
        if module is not None:
            attrgetter(function)(module)(0)


def _has_module(package: Any, name: str) -> bool:
    """Whether a package holds a module or a folder (a package even without __init__.py) of that
    name.
    """
    is_package = isinstance(package, ModuleType) and hasattr(package, "__path__")
    return is_package and importlib.util.find_spec(f"{package.__name__}.{name}") is not None


def _modules(package: Any) -> list[str]:
    """Names of the modules in a package."""
    found = pkgutil.iter_modules(getattr(package, "__path__", None) or [])
    return [module.name for module in found if not module.name.startswith("_")]


def _defined(place: Any) -> list[str]:
    """Names of the classes and functions that a module or package defines itself."""
    home = getattr(place, "__name__", "")
    return [
        name
        for name, value in getattr(place, "__dict__", {}).items()
        if callable(value) and not name.startswith("_") and str(value.__module__).startswith(home)
    ]


def _file(module: ModuleType) -> str:
    return os.path.relpath(module.__file__) if module.__file__ else module.__name__


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    originals = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), originals, n=1)
    return f"; did you mean {originals[near[0]]!r}?" if near else "."


def _list(names: Sequence[str]) -> str:
    return f". There is: {', '.join(names)}" if names else ""
