"""Takes or refuses what was asked of accelerate, key by key: in the launcher file, by flags, by
variables.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.errors import print_error
from train.installation import LAUNCH
from train.launching.arguments import LaunchRefused
from train.launching.launcher_file import LauncherFile
from train.launching.launcher_keys import (
    NO_EFFECT,
    NUMBERS,
    ONLY_FLAGS,
    ONLY_IN_FILE,
    PRECISIONS,
    REFUSED,
    ROWS,
    SECTIONS,
    SHORT,
    SWITCHES,
    TRUE_OR_FALSE,
    VARIABLES,
    asks_nothing,
    row_of,
)


@dataclass(frozen=True)
class Asked:
    shown: str
    """As the user wrote it."""
    key: str
    value: Any
    misplaced: str = ""
    """Where it belongs, if not there."""


def check(
    file: LauncherFile,
    flags: Sequence[str],
    environment: Mapping[str, str],
    precision: Callable[[], str],
) -> None:
    """Raise LaunchRefused with all that cannot be had; say what has no effect.

    `precision()`: the config's; asked for only where accelerate is to know one.
    """
    asked = [*of_file(file.values), *of_flags(flags), *of_environment(environment)]
    problems = refused(asked) + other_precision(asked, precision) + first_fsdp(asked)
    if file.users_own and file.get("distributed_type") is None:
        problems.append(
            "distributed_type is missing: accelerate's files state it. Set: distributed_type: "
            "MULTI_GPU"
        )
    if problems:
        where = f"{file.path}, and what follows --," if flags else str(file.path)
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise LaunchRefused(f"launch: {where} asks for what a run does not do\n{lines}")
    for note in without_effect(asked) + on_one_machine(file, asked):
        print_error(f"launch: {note}")


def of_file(values: Mapping[str, Any]) -> Iterator[Asked]:
    for key, value in ((str(key), value) for key, value in values.items()):
        if key not in SECTIONS or not isinstance(value, Mapping):
            misplaced = f"is a flag. Type: {LAUNCH} ... -- --{key}" if key in ONLY_FLAGS else ""
            yield Asked(f"{key}: {value}", key, value, misplaced)
            continue
        for name, inner in value.items():
            prefix = SECTIONS[key]
            whole = str(name) if str(name).startswith(prefix) else prefix + str(name)
            # One that accelerate has no flag for is refused with its section.
            yield Asked(f"{key}.{name}: {inner}", whole if row_of(whole, inner) else key, inner)


def of_flags(words: Sequence[str]) -> Iterator[Asked]:
    """What follows `--`; accelerate takes `-` and `_` alike, and no short forms of a name."""
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        key = SHORT.get(
            name, name.removeprefix("--").replace("-", "_") if name.startswith("--") else ""
        )
        if not key or key in ONLY_IN_FILE:
            yield Asked(word, word, word, "is no flag of accelerate launch")
        elif equals or key in SWITCHES:
            yield Asked(word, key, value if equals else True)
        else:
            # The value of an unknown flag is taken for a value too: it is reported once.
            value = left.pop(0) if left and not left[0].startswith("--") else ""
            yield Asked(f"{word} {value}".strip(), key, value)


def of_environment(environment: Mapping[str, str]) -> Iterator[Asked]:
    for name, key in VARIABLES.items():
        if name in environment:
            yield Asked(f"{name}={environment[name]}", key, environment[name])


def refused(asked: Sequence[Asked]) -> list[str]:
    """A sentence for each key that cannot be had; keys with the same reason share theirs."""
    by_reason: dict[str, list[str]] = {}
    for each in asked:
        reason = _why_not(each)
        if reason:
            by_reason.setdefault(reason, []).append(each.shown)
    return [f"{', '.join(shown)}: {reason}" for reason, shown in by_reason.items()]


def without_effect(asked: Sequence[Asked]) -> list[str]:
    notes = []
    for each in asked:
        row = row_of(each.key, each.value)
        if row and row.fate == NO_EFFECT and not asks_nothing(each.key, each.value):
            notes.append(f"{each.shown} has no effect: {row.says}")
    return notes


def on_one_machine(file: LauncherFile, asked: Sequence[Asked]) -> list[str]:
    """What the file says of a meeting that does not take place."""
    machines = {str(each.value) for each in asked if each.key in ("num_machines", "nnodes")}
    if machines - {"1"}:
        return []
    keys = ("machine_rank", "main_process_ip", "main_process_port")
    stated = [f"{key}: {file.get(key)}" for key in keys if file.get(key) not in (None, 0)]
    return (
        [f"{', '.join(stated)} has no effect on one machine: a free port is taken"]
        if stated
        else []
    )


def first_fsdp(asked: Sequence[Asked]) -> list[str]:
    """Where FSDP is asked for, and no version of it."""
    wanted = [each.shown for each in asked if asks_for_sharding(each)]
    if not wanted or any(each.key == "fsdp_version" for each in asked):
        return []
    return [
        f"{wanted[0]}: without fsdp_version accelerate means FSDP 1. Set: fsdp_version: 2 "
        "(FSDP_VERSION=2)"
    ]


def asks_for_sharding(asked: Asked) -> bool:
    if asked.key == "distributed_type":
        return bool(asked.value == "FSDP")
    return asked.key == "use_fsdp" and not asks_nothing(asked.key, asked.value)


def other_precision(asked: Sequence[Asked], precision: Callable[[], str]) -> list[str]:
    stated = [
        each
        for each in asked
        if each.key == "mixed_precision" and not asks_nothing(each.key, each.value)
    ]
    stated = [each for each in stated if each.value in PRECISIONS]
    if not stated:
        return []
    ours = precision()
    return [
        f"{each.shown}: the config says precision={ours}. Set: precision={each.value} in the "
        "config, or mixed_precision: 'no' in the launcher"
        for each in stated
        if each.value != ours
    ]


def _why_not(asked: Asked) -> str:
    """Empty where it can be had."""
    if asked.misplaced:
        return asked.misplaced
    row = row_of(asked.key, asked.value)
    if row is None:
        return _no_such_key(asked.key)
    if asks_nothing(asked.key, asked.value):
        return ""
    if row.fate == REFUSED:
        return row.says
    if asked.key in NUMBERS and not str(asked.value).removeprefix("-").isdecimal():
        return "has to be a whole number"
    if asked.key in TRUE_OR_FALSE and asked.value is not True:
        return "has to be true or false, without quotes"
    return ""


def _no_such_key(key: str) -> str:
    known = [name for row in ROWS for name in row.keys]
    near = difflib.get_close_matches(key, known, 1)
    return "accelerate has no such key or flag" + (
        f"; did you mean {near[0]}?" if near else ". Remove it"
    )
