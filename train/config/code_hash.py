"""The hash of code by what it computes, not by where it lies or how it looks. Pure: no torch.

Each top-level definition (or other statement) is hashed, then the sorted list of these hashes. So
a definition may move to another file, and a file may get another name.

These do not count: imports, docstrings and other bare strings, comments, blank lines, quotes,
`pass`, `__all__`, and what stands below `if TYPE_CHECKING:` or `if __name__ == "__main__":`.
An imported name counts as what it stands for: `from torch.nn.functional import gelu as act`
differs from `... import relu as act`.

Not seen: the order of top-level statements, from which of our files an import takes a name that
two of them define, and what `from library import *` brings.
"""

import ast
import hashlib
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

KIND = "definitions "
"""Before the digits. The first edition hashed names and bytes of files, and had digits alone."""

IGNORED_FIELDS = ("ctx", "type_comment")
"""Fields of a syntax tree that follow from others, or are comments."""

END = object()
"""Closes a node, or a list, among what still has to be written."""


def code_hash(sources: Iterable[bytes], packages: Collection[str]) -> str:
    """`definitions ` and 16 hex digits, the same on Python 3.11, 3.12 and 3.13.

    `sources`: the contents of files, in any order. What is no Python counts by its bytes: an
    extension module, or a file with a syntax error, which never ran.
    `packages`: top-level names of the packages that the sources belong to. What is imported from
    these counts by its name alone, since it may move from file to file.
    """
    hashes: list[str] = []
    # Hashable, for the cache of _hashes.
    names = frozenset(packages)
    for source in sources:
        hashes += _hashes(source, names)
    # Sorted: the order of definitions, and of files, is no part of what they compute.
    return f"{KIND}{_sha256(' '.join(sorted(hashes)))[:16]}"


def is_comparable(code: str) -> bool:
    """Whether a hash is of this kind: those of the first edition say nothing about these."""
    return code.startswith(KIND)


def parse(source: bytes) -> ast.Module | None:
    """The syntax tree of a file, None where it is no Python."""
    with warnings.catch_warnings():
        # Python 3.12 warns of "\d", and under -W error a file with it would be no Python.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # ValueError: a null byte. The last two: nested too deeply for Python itself.
            return None


# Cached for processes that train several times, such as the tests: reading this package takes a
# quarter of a second.
@lru_cache(maxsize=1000)
def _hashes(source: bytes, packages: frozenset[str]) -> tuple[str, ...]:
    module = parse(source)
    if module is None:
        return (hashlib.sha256(source).hexdigest(),)
    origins = _origins(module, packages)
    # Each definition alone, so that one may move to another file.
    texts = [" ".join(_words(statement, origins)) for statement in _computing(module.body)]
    return tuple(map(_sha256, texts))


def _words(statement: ast.stmt, origins: Mapping[str, str]) -> Iterator[str]:
    """A statement in words from which it could be read back.

    Not by ast.dump, which differs from one Python to the next; and not by recursion, which ends at
    a long chain of +.
    """
    waiting: list[Any] = [statement]
    while waiting:
        # A stack in place of recursion: what is pushed last is written first, hence `reversed`.
        part = waiting.pop()
        if part is END:
            yield ")"
        elif isinstance(part, ast.AST):
            yield f"{type(part).__name__}("
            waiting.append(END)
            for name, value in reversed(_fields(part, origins).items()):
                waiting += [value, name]
        elif isinstance(part, list):
            yield "list("
            waiting += [END, *reversed(part)]
        elif type(part) is int:
            # Python refuses to write more than 4300 digits in decimal. A bool is not meant.
            yield hex(part)
        else:
            # Not repr: which characters it escapes changes with Python's tables of Unicode.
            yield ascii(part)


def _fields(node: ast.AST, origins: Mapping[str, str]) -> dict[str, Any]:
    """What a node consists of.

    None and [] are skipped: a newer Python has fields that an older one does not know.
    """
    if isinstance(node, ast.Constant):
        # None is a value here. Its other field, `kind`, tells u"" from "".
        return {"value": node.value}
    if isinstance(node, ast.Name):
        return {"id": origins.get(node.id, node.id)}
    fields = {}
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.JoinedStr):
            value = _joined(value)
        elif isinstance(value, list):
            value = _computing(value)
        if value is not None and value != [] and name not in IGNORED_FIELDS:
            fields[name] = value
    return fields


def _computing(statements: list[Any]) -> list[Any]:
    """The statements that compute something; a list of anything else stays as it is."""
    kept: list[Any] = []
    for statement in statements:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                pass
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                pass
            case ast.AugAssign(target=ast.Name(id="__all__")):
                pass
            case ast.AnnAssign(target=ast.Name(id="__all__")):
                pass
            case ast.If(test=test) if _is_false_in_a_run(test):
                # The other branch is what a run sees.
                kept += _computing(statement.orelse)
            case _:
                kept.append(statement)
    return kept


def _is_false_in_a_run(test: ast.expr) -> bool:
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return True
        # What stands below it runs in a script only, and a config's target is imported.
        case ast.Compare(
            left=ast.Name(id="__name__"),
            ops=[ast.Eq()],
            comparators=[ast.Constant(value="__main__")],
        ):
            return True
    return False


def _joined(pieces: list[ast.expr]) -> list[ast.expr | str]:
    """The pieces of an f-string, plain text in one piece: Pythons differ in where they cut it."""
    joined: list[ast.expr | str] = []
    text = ""
    for piece in pieces:
        match piece:
            case ast.Constant(value=str(more)):
                text += more
            case _:
                joined += [text, piece]
                text = ""
    return [piece for piece in [*joined, text] if piece != ""]


def _origins(module: ast.Module, packages: Collection[str]) -> dict[str, str]:
    """{name: what it stands for} of all that a file imports.

    That is the full path in a library, and the last part of it in `packages`. A name that is
    imported twice, as in `try: ... except ImportError: ...`, stands for both.
    """
    paths_of: dict[str, set[str]] = {}
    # ast.walk: imports inside of functions, too. A name counts in the whole file, whatever its
    # scope.
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a, `import a.b as c` binds a.b.
                path = alias.name if alias.asname else alias.name.split(".")[0]
                paths_of.setdefault(alias.asname or path, set()).add(_counted(path, packages))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # An empty first part is a relative import, from a package of the same sources.
                path = f"{'' if node.level else node.module}.{alias.name}"
                paths_of.setdefault(alias.asname or alias.name, set()).add(_counted(path, packages))
    return {name: "|".join(sorted(paths)) for name, paths in paths_of.items()}


def _counted(path: str, packages: Collection[str]) -> str:
    parts = path.split(".")
    return parts[-1] if parts[0] in ("", *packages) else path


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
