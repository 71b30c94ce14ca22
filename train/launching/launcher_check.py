"""Accepts or refuses each setting of accelerate: of the launcher file, flags and variables."""

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
class Setting:
    """One that the user states for accelerate."""

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
    """Raise LaunchRefused with all that is not supported; print what has no effect.

    `precision()`: the config's; called only where accelerate's settings name one.
    """
    settings = [*of_file(file.values), *of_flags(flags), *of_environment(environment)]
    # All at once: whoever learns of one key at a time has to start as many times.
    problems = refused(settings) + other_precision(settings, precision) + first_fsdp(settings)
    if file.users_own and file.get("distributed_type") is None:
        problems.append(
            "distributed_type is missing: accelerate's files state it. Set: distributed_type: "
            "MULTI_GPU"
        )
    if problems:
        where = f"{file.path}, and what follows --," if flags else str(file.path)
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise LaunchRefused(f"launch: {where} asks for what a run does not do\n{lines}")
    for note in without_effect(settings) + on_one_machine(file, settings):
        print_error(f"launch: {note}")


def of_file(values: Mapping[str, Any]) -> Iterator[Setting]:
    for name, value in values.items():
        key = str(name)
        if key in SECTIONS and isinstance(value, Mapping):
            yield from _of_section(key, value)
            continue
        misplaced = f"is a flag. Run: {LAUNCH} ... -- --{key}" if key in ONLY_FLAGS else ""
        yield Setting(f"{key}: {value}", key, value, misplaced)


def _of_section(section: str, values: Mapping[Any, Any]) -> Iterator[Setting]:
    prefix = SECTIONS[section]
    for name, value in values.items():
        flag = prefix + str(name).removeprefix(prefix)
        # A key that accelerate has no flag for is refused with its section.
        key = flag if row_of(flag, value) else section
        yield Setting(f"{section}.{name}: {value}", key, value)


def of_flags(words: Sequence[str]) -> Iterator[Setting]:
    """What follows `--`; accelerate takes `-` and `_` alike, and no short forms of a name."""
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        key = SHORT.get(name, "")
        if name.startswith("--"):
            key = name.removeprefix("--").replace("-", "_")
        if not key or key in ONLY_IN_FILE:
            yield Setting(word, word, word, "is no flag of accelerate launch")
        elif equals or key in SWITCHES:
            yield Setting(word, key, value if equals else True)
        else:
            # The value of an unknown flag is taken for a value too: it is reported once.
            value = left.pop(0) if left and not left[0].startswith("--") else ""
            yield Setting(f"{word} {value}".strip(), key, value)


def of_environment(environment: Mapping[str, str]) -> Iterator[Setting]:
    for name, key in VARIABLES.items():
        if name in environment:
            yield Setting(f"{name}={environment[name]}", key, environment[name])


def refused(settings: Sequence[Setting]) -> list[str]:
    """A sentence for each setting that is not supported; those with the same reason share one."""
    by_reason: dict[str, list[str]] = {}
    for each in settings:
        reason = _why_not(each)
        if reason:
            by_reason.setdefault(reason, []).append(each.shown)
    return [f"{', '.join(shown)}: {reason}" for reason, shown in by_reason.items()]


def without_effect(settings: Sequence[Setting]) -> list[str]:
    notes = []
    for each in settings:
        row = row_of(each.key, each.value)
        if row and row.fate == NO_EFFECT and not asks_nothing(each.key, each.value):
            notes.append(f"{each.shown} has no effect: {row.says}")
    return notes


def on_one_machine(file: LauncherFile, settings: Sequence[Setting]) -> list[str]:
    """What the file says of a rendezvous that does not take place."""
    # Without several machines nothing meets, whatever the file says.
    machines = {str(each.value) for each in settings if each.key in ("num_machines", "nnodes")}
    if machines - {"1"}:
        return []
    keys = ("machine_rank", "main_process_ip", "main_process_port")
    stated = [f"{key}: {file.get(key)}" for key in keys if file.get(key) not in (None, 0)]
    if not stated:
        return []
    return [f"{', '.join(stated)} has no effect on one machine: a free port is taken"]


def first_fsdp(settings: Sequence[Setting]) -> list[str]:
    """Where FSDP is asked for without its version."""
    sharding = [each.shown for each in settings if asks_for_sharding(each)]
    if not sharding or any(each.key == "fsdp_version" for each in settings):
        return []
    return [
        f"{sharding[0]}: without fsdp_version accelerate means FSDP 1. Set: fsdp_version: 2 "
        "(FSDP_VERSION=2)"
    ]


def asks_for_sharding(setting: Setting) -> bool:
    if setting.key == "distributed_type":
        return bool(setting.value == "FSDP")
    return setting.key == "use_fsdp" and not asks_nothing(setting.key, setting.value)


def other_precision(settings: Sequence[Setting], precision: Callable[[], str]) -> list[str]:
    stated = [
        each for each in settings if each.key == "mixed_precision" and each.value in PRECISIONS
    ]
    if not stated:
        return []
    configured = precision()
    return [
        f"{each.shown}: the config says precision={configured}. Set: precision={each.value} in "
        "the config, or mixed_precision: 'no' in the launcher"
        for each in stated
        if each.value != configured
    ]


def _why_not(setting: Setting) -> str:
    """Empty where it is supported."""
    key = setting.key
    value = setting.value
    if setting.misplaced:
        return setting.misplaced
    row = row_of(key, value)
    if row is None:
        return _no_such_key(key)
    # Even a refused key is harmless with a value that asks for nothing: accelerate config writes
    # such values itself.
    if asks_nothing(key, value):
        return ""
    if row.fate == REFUSED:
        return row.says
    if key in NUMBERS and not str(value).removeprefix("-").isdecimal():
        return "has to be a whole number"
    if key in TRUE_OR_FALSE and value is not True:
        return "has to be true or false, without quotes"
    return ""


def _no_such_key(key: str) -> str:
    names = [name for row in ROWS for name in row.keys]
    near = difflib.get_close_matches(key, names, 1)
    fix = f"; did you mean {near[0]}?" if near else ". Remove it"
    return f"accelerate has no such key or flag{fix}"
