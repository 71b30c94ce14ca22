"""The keys of a config, derived from the fields of its dataclasses."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from train.config.annotations import Choices, Effect, Range
from train.config.schema import Config

KeyPath = tuple[Hashable, ...]
"""A key, in parts. Below `args` a part may be anything that YAML takes as a key."""

MISSING = "???"
"""OmegaConf's mark of a value that has no default and must be stated."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """All that a field says about its key, but for the text below it."""

    type: Any
    default: Any
    effect: Effect
    values: Range | Choices | None
    """None: what has the right type is in range."""


def keys_of(section: Any, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields (dotted key, Key) of every field, those of sections below it included.

    Raises TypeError for a field that does not state the effect of its key.
    """
    # Without include_extras it gives the bare types, as OmegaConf sees them.
    annotations = get_type_hints(type(section), include_extras=True)
    for field in fields(section):
        name = f"{prefix}{field.name}"
        default = getattr(section, field.name)
        if is_dataclass(default):
            yield from keys_of(default, f"{name}.")
        else:
            yield name, _key(name, annotations[field.name], default)


def _key(name: str, annotation: Any, default: Any) -> Key:
    kind, *stated = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    effects = [each for each in stated if isinstance(each, Effect)]
    if len(effects) != 1:
        raise TypeError(
            f"the field of {name} must state one effect. Write Annotated[TYPE, MATHEMATICS], or "
            "EXECUTION or NEUTRAL (train/config/annotations.py)"
        )
    values = [each for each in stated if isinstance(each, Range | Choices)]
    return Key(type=kind, default=default, effect=effects[0], values=values[0] if values else None)


# From an instance, since some defaults are made by a factory.
KEYS: dict[str, Key] = dict(keys_of(Config()))
TYPES: dict[str, Any] = {name: key.type for name, key in KEYS.items()}
DEFAULTS: dict[str, Any] = {name: key.default for name, key in KEYS.items()}

_SECTION_OF = {name: name.rpartition(".")[0] for name in KEYS}
SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(filter(None, _SECTION_OF.values())))
TARGETS: dict[str, str] = {
    section: f"{section}.target" if f"{section}.target" in KEYS else f"{section}.source"
    for section in SECTIONS
    if f"{section}.args" in KEYS
}
"""{section: the key that names what its `args` are passed to}."""


def with_effect(*effects: Effect) -> tuple[str, ...]:
    """The keys that have one of the effects, and the sections all of whose keys have.

    The sections are named as well because a run folder may hold the config of another version:
    a key that has left such a section since then still counts as one of its keys.
    """
    matching = [name for name, key in KEYS.items() if key.effect in effects]
    sections = [
        section
        for section in SECTIONS
        if all(name in matching for name in KEYS if _SECTION_OF[name] == section)
    ]
    return (*sections, *matching)


def parts(key: str) -> KeyPath:
    return tuple(key.split("."))


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def owner(path: KeyPath) -> str | None:
    """The schema's key that `path` is, or lies below; None if there is none."""
    # The shortest part that is a key of the schema; what follows lies below it.
    for length in range(1, len(path) + 1):
        key = dotted(path[:length])
        if key in KEYS:
            return key
    return None


def types_of(key: str) -> tuple[Any, ...]:
    """The members of a key's type: (int, NoneType) for `int | None`, (list[int],) for that."""
    annotation = TYPES[key]
    # Python has two types for it: that of `int | None`, and typing.Union.
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def under(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of `names`, or belongs to a section among them."""
    # With the dot: batch.micro_tokens is not below batch.micro.
    return any(key == name or key.startswith(f"{name}.") for name in names)
