"""Layers of settings, merged: a later one wins key by key; its choice among alternatives removes
the earlier.

A layer is flat: {path of a leaf: value}. Lists are leaves, so they replace each other. Pure.
"""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.config.keys import DEFAULTS, MISSING, TARGETS, Path, dotted, parts
from train.config.problems import Problem, show

ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    ("duration.steps", "duration.epochs", "duration.samples", "duration.tokens"),
    (
        "schedule.warmup_steps",
        "schedule.warmup_fraction",
        "schedule.warmup_samples",
        "schedule.warmup_tokens",
    ),
    ("evaluate.every_steps", "evaluate.every_samples", "evaluate.every_tokens"),
    ("batch.effective", "batch.effective_tokens", "batch.schedule", "batch.schedule_tokens"),
)
"""Groups of which at most one key is stated."""
BATCH = (*ALTERNATIVES[-1], "batch.micro", "batch.accumulation_steps", "batch.micro_tokens")
"""Two of these say the others. The first ones are kept when a later layer states others."""
WHOLE = ("batch.schedule", "batch.schedule_tokens")
"""Mappings that are one value: a later one replaces the earlier, and is not merged into it."""


@dataclass(frozen=True)
class Layer:
    name: str
    """The file, or `command line`."""
    values: Mapping[Path, Any]
    edits: Sequence[tuple[Path, Any]] = ()
    """Single elements of lists, by index; they apply after `values`."""


@dataclass(frozen=True)
class Setting:
    value: Any
    origin: str
    """Name of the layer that set it."""


Settings = dict[Path, Setting]
"""In the order of their layers: the last one comes from the highest layer."""


def flatten(values: Mapping[Any, Any], prefix: Path = ()) -> dict[Path, Any]:
    """A nested mapping as {path: leaf}. `task: NAME` is short for `task: {target: NAME}`."""
    flat: dict[Path, Any] = {}
    for key, value in values.items():
        path = (*prefix, key)
        if isinstance(value, str) and TARGETS.get(dotted(path)) == f"{dotted(path)}.target":
            flat[*path, "target"] = value
        elif isinstance(value, Mapping) and value and dotted(path) not in WHOLE:
            flat |= flatten(value, path)
        else:
            flat[path] = value
    return flat


def merge(layers: Sequence[Layer]) -> tuple[Settings, list[Problem]]:
    """Merges the layers, lowest first."""
    settings: Settings = {}
    problems = []
    for layer in layers:
        for gone in _replaced(settings, layer.values):
            del settings[gone]
        for path, value in layer.values.items():
            _put(settings, path, Setting(value, layer.name))
        for path, value in layer.edits:
            try:
                _edit(settings, path, Setting(value, layer.name))
            except LookupError as error:
                text = f"got {show(value)} for an element of a list; {error}"
                problems.append(Problem(layer.name, dotted(path), text))
    return settings, problems


def _replaced(settings: Settings, values: Mapping[Path, Any]) -> set[Path]:
    """What the choices of a layer remove from the layers below it."""
    gone: set[Path] = set()
    for group in ALTERNATIVES:
        if _stated(values, group):
            gone.update(parts(key) for key in group)
    if chosen := _stated(values, BATCH):
        below = {path: setting.value for path, setting in settings.items() if path not in values}
        stated = _stated(below, BATCH)
        earlier = [
            key for key in stated if below[parts(key)] != DEFAULTS[key] and parts(key) not in gone
        ]
        kept = earlier[: max(0, 2 - len(chosen))]
        gone.update(parts(key) for key in BATCH if key not in kept)
    for section, target in TARGETS.items():
        if _changes(settings, values, target):
            args = parts(f"{section}.args")
            gone.update(path for path in settings if path[: len(args)] == args)
    return (gone & settings.keys()) - values.keys()


def _stated(values: Mapping[Path, Any], group: Sequence[str]) -> list[str]:
    return [key for key in group if values.get(parts(key)) is not None]


def _changes(settings: Settings, values: Mapping[Path, Any], target: str) -> bool:
    """Whether a layer names another target than the layers below it (or the default, if they name
    none).
    """
    path, default = parts(target), DEFAULTS[target]
    if path not in values:
        return False
    before = settings[path].value if path in settings else default
    after = default if values[path] is None else values[path]
    return bool(before not in (MISSING, after))


def _put(settings: Settings, path: Path, setting: Setting) -> None:
    """Sets one key; null unsets what lower layers gave, and is a value of its own where they gave
    nothing.
    """
    below = [other for other in settings if len(other) > len(path) and other[: len(path)] == path]
    if setting.value == {} and below:
        return
    given = settings.pop(path, None) is not None or bool(below)
    for other in below:
        del settings[other]
    for length in range(1, len(path)):
        settings.pop(path[:length], None)
    if setting.value is not None or not given:
        settings[path] = setting


def _edit(settings: Settings, path: Path, setting: Setting) -> None:
    """Sets an element of a list. `.0` may also name a key of a mapping, `[0]` may not.

    Raises LookupError.
    """
    heads = [path[:length] for length in range(1, len(path))]
    head = next(
        (head for head in heads if head in settings and isinstance(settings[head].value, list)),
        None,
    )
    if head is None and any(isinstance(part, int) for part in path):
        raise LookupError("there is no list in the layers below. Write the whole list")
    if head is None:
        _put(settings, path, setting)
        return
    changed = copy.deepcopy(settings[head].value)
    *above, last = path[len(head) :]
    container = changed
    for part in above:
        container = container[_place(container, part)]
    container[_place(container, last)] = setting.value
    _put(settings, head, Setting(changed, setting.origin))


def _place(container: Any, part: Hashable) -> Any:
    if isinstance(container, dict):
        return part
    length = len(container) if isinstance(container, list) else 0
    if not (str(part).isdigit() and int(str(part)) < length):
        raise LookupError(
            f"there is no element {part!r}, only {length}, numbered from 0. Write the whole list"
        )
    return int(str(part))
