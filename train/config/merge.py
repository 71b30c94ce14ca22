"""Merges layers of settings: a later one wins key by key, and choice by choice.

A layer is flat: {path of a leaf: value}. Lists are leaves, so they replace each other. Pure.
"""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.config.keys import DEFAULTS, MISSING, TARGETS, KeyPath, dotted, parts
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
"""The others follow from two of these. The first are kept where a later layer states others."""
SCHEDULES = ("batch.schedule", "batch.schedule_tokens")
"""Mappings that are one value: a later one replaces the earlier, and is not merged into it."""


@dataclass(frozen=True)
class Layer:
    name: str
    """The file, or `command line`."""
    values: Mapping[KeyPath, Any]
    edits: Sequence[tuple[KeyPath, Any]] = ()
    """Single elements of lists, by index; they apply after `values`."""


@dataclass(frozen=True)
class Setting:
    value: Any
    origin: str
    """Name of the layer that set it."""


Settings = dict[KeyPath, Setting]
"""In the order of their layers: the last one comes from the highest layer."""


def flatten(values: Mapping[Any, Any], prefix: KeyPath = ()) -> dict[KeyPath, Any]:
    """A nested mapping as {path: leaf}. `task: NAME` is short for `task: {target: NAME}`."""
    flat: dict[KeyPath, Any] = {}
    for key, value in values.items():
        path = (*prefix, key)
        # Not for data, whose key is `source`: `data: NAME` is a mistake.
        if isinstance(value, str) and TARGETS.get(dotted(path)) == f"{dotted(path)}.target":
            flat[*path, "target"] = value
        elif isinstance(value, Mapping) and value and dotted(path) not in SCHEDULES:
            flat |= flatten(value, path)
        else:
            flat[path] = value
    return flat


def merge(layers: Sequence[Layer]) -> tuple[Settings, list[Problem]]:
    """Merges the layers, lowest first."""
    settings: Settings = {}
    problems = []
    for layer in layers:
        # First what the choices of this layer remove, then what it states itself.
        for path in _replaced(settings, layer.values):
            del settings[path]
        for path, value in layer.values.items():
            _put(settings, path, Setting(value, layer.name))
        for path, value in layer.edits:
            try:
                _edit(settings, path, Setting(value, layer.name))
            except LookupError as error:
                text = f"got {show(value)} for an element of a list; {error}"
                problems.append(Problem(layer.name, dotted(path), text))
    return settings, problems


def _replaced(settings: Settings, values: Mapping[KeyPath, Any]) -> set[KeyPath]:
    """The settings of lower layers that a layer's choices remove, without what it sets itself."""
    replaced: set[KeyPath] = set()
    # So `duration.steps=10` above a file with duration.epochs replaces that, where both would
    # exclude each other.
    for group in ALTERNATIVES:
        if _stated(values, group):
            replaced.update(parts(key) for key in group)
    replaced |= _replaced_batch(settings, values, replaced)
    # Arguments belong to their target: another one would refuse them.
    for section, target in TARGETS.items():
        if _changes(settings, values, target):
            args = parts(f"{section}.args")
            replaced.update(path for path in settings if path[: len(args)] == args)
    return (replaced & settings.keys()) - values.keys()


def _replaced_batch(
    settings: Settings, values: Mapping[KeyPath, Any], replaced: set[KeyPath]
) -> set[KeyPath]:
    """All of BATCH but as many earlier keys as make two with those that the layer states.

    So `batch.micro=8` above a file with batch.effective keeps the file's effective batch.
    """
    stated = _stated(values, BATCH)
    if not stated:
        return set()
    below = {path: setting.value for path, setting in settings.items() if path not in values}
    # A stated default, `micro: all`, determines nothing.
    earlier = [
        key
        for key in _stated(below, BATCH)
        if below[parts(key)] != DEFAULTS[key] and parts(key) not in replaced
    ]
    # In the order of BATCH: the effective batch stays before the micro-batch.
    kept = earlier[: max(0, 2 - len(stated))]
    return {parts(key) for key in BATCH if key not in kept}


def _stated(values: Mapping[KeyPath, Any], group: Sequence[str]) -> list[str]:
    return [key for key in group if values.get(parts(key)) is not None]


def _changes(settings: Settings, values: Mapping[KeyPath, Any], target: str) -> bool:
    """Whether a layer names another target than the layers below it, or than the default."""
    path = parts(target)
    # A layer that states the target again, or the default, keeps the arguments below it.
    default = DEFAULTS[target]
    if path not in values:
        return False
    before = settings[path].value if path in settings else default
    after = default if values[path] is None else values[path]
    # Where no target was named yet, arguments in lower layers wait for one.
    return bool(before not in (MISSING, after))


def _put(settings: Settings, path: KeyPath, setting: Setting) -> None:
    """Sets one key. null unsets what lower layers set, and is a value where they set nothing."""
    below = [other for other in settings if len(other) > len(path) and other[: len(path)] == path]
    # An empty mapping has nothing to set, and removes nothing.
    if setting.value == {} and below:
        return
    was_set = path in settings or bool(below)
    # Popped, not overwritten: the order of the settings is that of their layers.
    settings.pop(path, None)
    for other in below:
        del settings[other]
    # A value in place of the whole section gives way, too.
    for length in range(1, len(path)):
        settings.pop(path[:length], None)
    if setting.value is not None or not was_set:
        settings[path] = setting


def _edit(settings: Settings, path: KeyPath, setting: Setting) -> None:
    """Sets an element of a list. `.0` may also name a key of a mapping, `[0]` may not.

    Raises LookupError.
    """
    head = _list_around(settings, path)
    # Only [0] says that a list is meant; `.0` may be a key of a mapping.
    if head is None and any(isinstance(part, int) for part in path):
        raise LookupError("there is no list in the layers below. Write the whole list")
    if head is None:
        _put(settings, path, setting)
        return
    # A copy: the list belongs to a lower layer.
    changed = copy.deepcopy(settings[head].value)
    *above, last = path[len(head) :]
    container = changed
    for part in above:
        container = container[_index(container, part)]
    container[_index(container, last)] = setting.value
    _put(settings, head, Setting(changed, setting.origin))


def _list_around(settings: Settings, path: KeyPath) -> KeyPath | None:
    """The setting above `path` that is a list."""
    for length in range(1, len(path)):
        head = path[:length]
        if head in settings and isinstance(settings[head].value, list):
            return head
    return None


def _index(container: Any, part: Hashable) -> Any:
    """`part` as an index of a list, or key of a mapping. Raises LookupError."""
    if isinstance(container, dict):
        return part
    length = len(container) if isinstance(container, list) else 0
    if not (str(part).isdigit() and int(str(part)) < length):
        raise LookupError(
            f"there is no element {part!r}, only {length}, numbered from 0. Write the whole list"
        )
    return int(str(part))
