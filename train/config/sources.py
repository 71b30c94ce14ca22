"""The user's own code behind a target: the file that defines it, and the files that this one imports."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from typing import Any

LIBRARIES = {"site-packages", "dist-packages"}


def own_sources(target: Callable[..., Any] | None) -> set[Path]:
    """All files of the user's that a target is made of, found by following imports, whether or not they have been run.

    Not followed: into this package, whose rooms that compute are known, into libraries and into Python's own modules.
    What is imported under a name that is only made up at run time is not found.
    """
    file = inspect.getsourcefile(target) if inspect.isfunction(target) or inspect.isclass(target) else None
    home = getattr(target, "__module__", "")
    if not file or _is_pythons(home) or LIBRARIES & {*Path(file).parts}:
        return set()
    files = {Path(file).resolve(): home, **dict(_own(home))}
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        for name in _imported(path, files[path]):
            new = {file: module for file, module in _own(name) if file not in files}
            files |= new
            waiting += new
    return set(files)


def _own(name: str) -> Iterator[tuple[Path, str]]:
    """(file, module) of a module and of the packages around it, as far as they are the user's."""
    parts = name.split(".")
    if _is_pythons(name) or parts[0] == __name__.split(".")[0]:
        return
    for module in accumulate(parts, "{}.{}".format):
        spec = _spec(module)
        if spec is None or (spec.origin and LIBRARIES & {*Path(spec.origin).parts}):
            return
        if spec.has_location and spec.origin:
            yield Path(spec.origin).resolve(), module


def _is_pythons(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):  # no module, but something in one; or none that can be imported
        return None


def _imported(path: Path, module: str) -> Iterator[str]:
    """Names of modules that a file imports anywhere in it, and of what it takes from them: that may be a module too."""
    if path.suffix != ".py":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # never run so far
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                home = importlib.util.resolve_name("." * node.level + home, package)
            yield from (f"{home}.{alias.name}" for alias in node.names)
