"""Targets that cannot be imported, and arguments that they do not take.

Checking them imports the user's code, and torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from train.config.convert import Origins
from train.config.keys import TARGETS
from train.config.problems import Problem, fresh
from train.config.targets import TargetError, check_arguments, resolve, resolve_source
from train.config.trust import Foreign

HOMES = {"model": "train.models", "task": "train.tasks", "optimizer": "torch.optim"}
"""Where a section's bare target is looked up; that of data is train.data."""
FUNCTIONS = ("data.transform", "data.eval_transform")
PASSED = {"optimizer": ("params", "lr")}
"""Arguments that Isobatch passes itself."""


def check_targets(
    values: Mapping[str, Any],
    origins: Origins,
    earlier: Sequence[Problem],
    foreign: Foreign | None,
) -> list[Problem]:
    """Those with an earlier problem are skipped, and of a foreign config those not needed."""
    problems = []
    # These get no arguments from the config: whether they can be found is all there is to check.
    for key in FUNCTIONS:
        if not values[key] or not _is_needed(key, foreign):
            continue
        try:
            resolve(values[key], "train.data")
        except TargetError as error:
            problems.append(Problem(origins(key), key, str(error)))
    for section, key in TARGETS.items():
        # A target that is already wrong by another rule would be told twice.
        has_problem = not fresh([Problem("", key, "")], earlier)
        if has_problem or not _is_needed(key, foreign):
            continue
        try:
            target = _resolved(section, values[key])
        except TargetError as error:
            problems.append(Problem(origins(key), key, str(error)))
            continue
        # None is a data source that is no function.
        if target is not None:
            problems += _check_arguments(section, key, target, values, origins)
    return problems


def _is_needed(key: str, foreign: Foreign | None) -> bool:
    return foreign is None or key in foreign.needed


def _resolved(section: str, name: str) -> Callable[..., Any] | None:
    if section in HOMES:
        return resolve(name, HOMES[section])
    return resolve_source(name)


def _check_arguments(
    section: str, key: str, target: Callable[..., Any], values: Mapping[str, Any], origins: Origins
) -> Iterator[Problem]:
    args = values[f"{section}.args"]
    for argument, text in check_arguments(target, args, PASSED.get(section, ())):
        path = f"{section}.args.{argument}"
        # An argument that is missing was set nowhere: its problem belongs to who named the target.
        yield Problem(origins(path if argument in args else key), path, text)
    if section == "optimizer":
        yield from _check_groups(target, values, origins)


def _check_groups(
    target: Callable[..., Any], values: Mapping[str, Any], origins: Origins
) -> Iterator[Problem]:
    """torch accepts any key in a group of parameters, and ignores those that it does not know."""
    arguments = {
        f"optimizer.groups[{number}].args": group["args"]
        for number, group in enumerate(values["optimizer.groups"])
    }
    # The optimizer gets it as a group with weight_decay=0, so it must know that word.
    if values["optimizer.no_decay"]:
        arguments["optimizer.no_decay"] = {"weight_decay": 0.0}
    for path, args in arguments.items():
        for _, text in check_arguments(target, args, PASSED["optimizer"]):
            yield Problem(origins(path.partition("[")[0]), path, text)
