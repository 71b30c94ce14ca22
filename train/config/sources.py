"""The user's own code behind a target: the file that defines it, and those that it imports."""

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from itertools import accumulate
from pathlib import Path
from typing import Any

from train.config.code_hash import parse

LIBRARIES = ("site-packages", "dist-packages")


def own_sources(name: str, target: Callable[..., Any] | None) -> dict[str, Path]:
    """{module: file} of the user's that a target depends on, by its imports, run or not.

    It starts at the module that the config names and at the target's `__module__`: a wrapper, such
    as functools.partial, may come from a library. Not followed: imports of this package, whose
    computing modules are listed, of libraries and of Python's standard library. A library of the
    user's that was installed with `pip install -e` counts as the user's code; installed normally,
    or by `pip install --target`, it does not. An import whose name is made at run time is not seen.
    """
    # A file or a name of the hub has no code behind it.
    if target is None:
        return {}
    files: dict[str, Path] = {}
    # The target's own module: the config may name it by a module that only imports it.
    waiting = [getattr(target, "__module__", "")]
    # A bare name is one of this package, or of torch.optim.
    if "." in name:
        waiting.append(name)
    while waiting:
        for module, file in _own(waiting.pop()):
            if module not in files:
                files[module] = file
                waiting += [other for other in _imported(file, module) if not _is_ours(other)]
    return {module: file for module, file in files.items() if not _is_ours(module)}


def _own(name: str) -> Iterator[tuple[str, Path]]:
    """(module, file) of a module and of the packages around it, as far as they are the user's."""
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names:
        return
    # Importing a.b.c runs the packages a and a.b as well.
    for module in accumulate(parts, "{}.{}".format):
        spec = _spec(module)
        # Where there is no such module, the rest of the name is something inside the last one.
        if spec is None or (spec.origin and _is_installed(module, Path(spec.origin))):
            return
        if spec.has_location and spec.origin:
            yield module, Path(spec.origin).resolve()


def _is_installed(module: str, file: Path) -> bool:
    """Whether it lies in a folder that pip keeps: one with records of what it installed there."""
    if not set(LIBRARIES).isdisjoint(file.parts):
        return True
    # The folder from which Python imports it: as many levels up as the name has parts.
    folder = file.parents[module.count(".") + (file.name == "__init__.py")]
    return _has_records(folder)


@cache
def _has_records(folder: Path) -> bool:
    return any(folder.glob("*.dist-info"))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == __name__.split(".")[0]


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (Exception, SystemExit):
        # The name of something in a module, or a package around it raises when it runs.
        return None


def _imported(path: Path, module: str) -> Iterator[str]:
    """Names of modules that a file imports, and of what it takes from them: maybe modules too."""
    # What an extension module imports cannot be read.
    if path.suffix != ".py":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = parse(path.read_bytes())
    # A file that cannot be parsed has never run.
    if tree is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                try:
                    home = importlib.util.resolve_name("." * node.level + home, package)
                except ImportError:
                    # Out of the top package: it fails when it runs as well, maybe in a `try`.
                    continue
            yield from (f"{home}.{alias.name}" for alias in node.names)
