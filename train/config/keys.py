"""The keys of a config, derived from the schema: which exist, of which type, with which default."""

from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from train.config.schema import Config

Path = tuple[Hashable, ...]
"""A key, in parts. Below `args` a part may be anything that YAML takes as a key."""

MISSING = "???"
"""OmegaConf's mark of a value that has no default and must be stated."""


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, type, default) of every field that is not a section itself."""
    types = get_type_hints(type(section))
    for field in fields(section):
        default = getattr(section, field.name)
        if is_dataclass(default):
            yield from _leaves(default, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", types[field.name], default


_LEAVES = list(_leaves(Config()))
TYPES: dict[str, Any] = {key: annotation for key, annotation, _ in _LEAVES}
DEFAULTS: dict[str, Any] = {key: default for key, _, default in _LEAVES}
SECTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(key.rpartition(".")[0] for key in TYPES if "." in key)
)
TARGETS: dict[str, str] = {
    section: f"{section}.target" if f"{section}.target" in TYPES else f"{section}.source"
    for section in SECTIONS
    if f"{section}.args" in TYPES
}
"""{section: the key that names what its `args` are given to}."""


def parts(key: str) -> Path:
    return tuple(key.split("."))


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def owner(path: Path) -> str | None:
    """The schema's key that `path` is, or lies below; None if there is none."""
    candidates = (dotted(path[:length]) for length in range(1, len(path) + 1))
    return next((key for key in candidates if key in TYPES), None)


def types_of(key: str) -> tuple[Any, ...]:
    """The members of a key's type: (int, NoneType) for `int | None`, (list[int],) for
    `list[int]`.
    """
    annotation = TYPES[key]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
