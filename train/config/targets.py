"""Targets: what `model.target` and its like name, and whether it takes its arguments.

A bare name is looked up by file name, without a registry: `causal_lm` in train.models is CausalLM
in train/models/causal_lm.py; where there is no such file, an attribute of the home itself
(torch.optim.AdamW).
"""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import random
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from train.config.problems import closest

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
    """Lets targets name modules of the current folder and of its my/, after installed packages."""
    # At the end: a file there hides no installed package.
    for folder in (Path.cwd(), Path.cwd() / "my"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def resolve(target: str, home: str) -> Callable[..., Any]:
    """The class or function that a target names.

    Raises TargetError.
    """
    # First, as find_spec raises errors of its own for what is no name.
    if not _is_dotted(target):
        raise TargetError(
            f"got {target!r}; it takes a name or a dotted path, such as package.module.Name"
        )
    resolved = _dotted(target) if "." in target else _short(target, home)
    if not callable(resolved):
        kind = type(resolved).__name__
        raise TargetError(
            f"{target} is a {kind}; it must be a class or a function{_list(_defined(resolved))}"
        )
    return resolved


def resolve_source(source: str) -> Callable[..., Any] | None:
    """The function that a data source names; None for a file, a folder or a name of the hub.

    Raises TargetError.
    """
    if not is_named_function(source):
        return None
    if "." in source:
        return resolve(source, "")
    return _match(_import(f"train.data.{source}"), source)


def resolve_tokenizer(tokenizer: str) -> Callable[..., Any] | None:
    """The class that a tokenizer names; None for a folder that holds a saved one.

    Raises TargetError.
    """
    if Path(tokenizer).is_dir():
        return None
    return resolve(tokenizer, "train.data.tokenizers")


def is_named_function(source: str) -> bool:
    """Whether a data source names a function: of this package, or with dots.

    Imports nothing but this package.
    """
    # A file or folder of that name comes before a function.
    if not _is_dotted(source) or Path(source).exists() or Path(source).suffix.lower() in FILES:
        return False
    return "." in source or _has_module(_import("train.data"), source)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def check_arguments(
    target: Callable[..., Any], args: Mapping[str, Any], passed: Collection[str] = ()
) -> list[tuple[str, str]]:
    """(argument, what is wrong) where keywords do not fit a signature.

    `passed`: arguments that Isobatch passes itself.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        # Some callables written in C have no signature.
        return []
    # A config's arguments are passed by name.
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keywords = {
        parameter.name: parameter for parameter in parameters if parameter.kind in by_keyword
    }
    accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    name = getattr(target, "__name__", repr(target))
    free = [key for key in keywords if key not in passed]
    takes = f"It takes: {', '.join(free)}" if free else "It takes none"
    problems = []
    for key in args:
        if key in passed:
            text = f"{name} is given {key!r} by Isobatch itself. Leave it out"
            problems.append((key, text))
        elif key not in keywords and not accepts_all:
            text = f"{name} takes no argument {key!r}{_did_you_mean(key, free)} {takes}"
            problems.append((key, text))
    for key in free:
        if keywords[key].default is inspect.Parameter.empty and key not in args:
            text = f"{name} needs the argument {key!r}, which is not given. {takes}"
            problems.append((key, text))
    return problems


def _short(name: str, home: str) -> Callable[..., Any]:
    package = _import(home)
    module = _import(f"{home}.{name}") if _has_module(package, name) else package
    match = _match(module, name)
    if match is not None:
        return match
    # There is a file of that name, so what is missing is missing in it.
    if module is not package:
        expected = name.replace("_", "").lower()
        raise TargetError(
            f"{_file(module)} has no class or function named {expected}{_list(_defined(module))}"
        )
    names = [*_modules(package), *(attribute.lower() for attribute in _defined(package))]
    raise TargetError(
        f"{home} has no {name!r}{_did_you_mean(name, names)} A dotted path names your own"
    )


def _match(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """The class or function whose name is `name` in lower case and without underscores."""
    plain = name.replace("_", "").lower()
    # Sorted: of two names that look alike it is always the same one.
    for attribute, value in sorted(vars(module).items()):
        if attribute.replace("_", "").lower() == plain and callable(value):
            return cast(Callable[..., Any], value)
    return None


def _dotted(target: str) -> Any:
    first, *rest = target.split(".")
    # Looked for first: a module that is missing and one that fails inside are two sentences.
    if first not in sys.modules and importlib.util.find_spec(first) is None:
        names = [module.name for module in pkgutil.iter_modules()]
        raise TargetError(f"there is no module {first!r}{_did_you_mean(first, names)}")
    reached: Any = _import(first)
    for position, part in enumerate(rest, start=1):
        # A package may hold a module and a function of the same name. In the middle of a path the
        # module is meant, at its end what can be called.
        is_last = position == len(rest)
        is_module = _has_module(reached, part)
        if is_module and not (is_last and callable(getattr(reached, part, None))):
            reached = _import(f"{reached.__name__}.{part}")
        elif hasattr(reached, part):
            reached = getattr(reached, part)
        else:
            path = ".".join([first, *rest[: position - 1]])
            names = [*_modules(reached), *dir(reached)]
            raise TargetError(f"{path} has no {part!r}{_did_you_mean(part, names)}")
    return reached


def _import(name: str) -> ModuleType:
    """Imports a module. Raises TargetError with the error in it, and where that was raised."""
    # A user's module may draw random numbers while it is imported: the same in every process.
    if name not in sys.modules:
        _set_generators()
    try:
        return importlib.import_module(name)
    # SystemExit: a script that is imported may end the process.
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error} ({_raised_at(error)})"
        raise TargetError(f"importing {name} failed: {what}") from error


def _raised_at(error: BaseException) -> str:
    """FILE:LINE of the error: of the innermost frame that is no part of Python's importer."""
    # The file of a syntax error is in no frame, since it never ran.
    if isinstance(error, SyntaxError) and error.filename:
        return f"{os.path.relpath(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    # Frames of Python's importer have files such as <frozen importlib._bootstrap>.
    frame = [frame for frame in frames if not frame.filename.startswith("<")][-1]
    return f"{os.path.relpath(frame.filename)}:{frame.lineno}"


def _set_generators() -> None:
    """Of the libraries that are imported already: NumPy and torch are not imported for it."""
    random.seed(0)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(0)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


def _has_module(package: Any, name: str) -> bool:
    """Whether a package holds a module or a folder of that name, even one without __init__.py."""
    is_package = isinstance(package, ModuleType) and hasattr(package, "__path__")
    return is_package and importlib.util.find_spec(f"{package.__name__}.{name}") is not None


def _modules(package: Any) -> list[str]:
    """Names of the modules in a package."""
    modules = pkgutil.iter_modules(getattr(package, "__path__", None) or [])
    return [module.name for module in modules if not module.name.startswith("_")]


def _defined(owner: Any) -> list[str]:
    """Names of the classes and functions that a module or package defines itself."""
    # What is only imported there has another `__module__`.
    home = getattr(owner, "__name__", "")
    return [
        name
        for name, value in getattr(owner, "__dict__", {}).items()
        if callable(value) and not name.startswith("_") and str(value.__module__).startswith(home)
    ]


def _file(module: ModuleType) -> str:
    return os.path.relpath(module.__file__) if module.__file__ else module.__name__


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = closest(name, names)
    return f"; did you mean {near!r}?" if near else "."


def _list(names: Sequence[str]) -> str:
    return f". There is: {', '.join(names)}" if names else ""
