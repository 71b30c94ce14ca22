"""Keys in which set-ups differ, and whether they change what is computed. Pure."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.comparison.columns import union
from train.comparison.group import EXECUTED, Group
from train.comparison.run import Run
from train.config import flatten, under

MATHEMATICS = "mathematics"
EXECUTION = "execution"
OMITTED = ("name", "output_dir", "wandb", "batch.micro", "batch.accumulation_steps")
"""Keys that name a run, or that show as what followed from them."""
ENVIRONMENT = (
    "git.commit",
    "git.dirty",
    "python",
    "packages",
    "platform",
    "host",
    "devices",
    "cuda",
    "nccl",
)
"""Keys of environment.json that count as execution."""
ABSENT = "-"
LONGEST_NAME = 24
"""Characters of a label that is made of the names of runs."""


@dataclass(frozen=True)
class Key:
    name: str
    kind: str
    values: tuple[str, ...]
    """Of each set-up; several, joined by commas, where its runs differ."""


def differing_keys(groups: Sequence[Group]) -> list[Key]:
    """Mathematics first."""
    return [
        *_differing(groups, MATHEMATICS, _mathematics),
        *_differing(groups, EXECUTION, _execution),
    ]


def _differing(
    groups: Sequence[Group], kind: str, keys_of: Callable[[Run], Mapping[str, Any]]
) -> list[Key]:
    per_group = [list(map(keys_of, group.runs)) for group in groups]
    keys = []
    for name in union(itertools.chain.from_iterable(per_group)):
        values = tuple(_as_text(runs, name) for runs in per_group)
        # Unknown is not different.
        is_unknown = name == "code" and ABSENT in values  # W&B does not have the hash over sources
        if len(set(values)) > 1 and not is_unknown:
            keys.append(Key(name, kind, values))
    return keys


def _mathematics(run: Run) -> dict[str, Any]:
    # The segments of a run that was resumed with other mathematics are a part of what it computed.
    keys = dict(run.identity)
    if run.changes:
        keys["history"] = "; ".join(run.changes)
    return keys


def _execution(run: Run) -> dict[str, Any]:
    keys = {key: run.derived[key] for key in EXECUTED if key in run.derived}
    for key, value in run.execution.items():
        if not under(key, OMITTED):
            keys[key] = value
    for key, value in flatten(run.environment).items():
        if under(key, ENVIRONMENT):
            keys[key] = value
    return keys


def _as_text(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """`0, 1, 2` for the seeds of a group; a key that is unset, or not recorded, is a dash."""
    texts = set()
    for keys in runs:
        value = keys.get(name)
        if value is None:
            texts.add(ABSENT)
        elif isinstance(value, str):
            texts.add(value)
        else:
            texts.add(json.dumps(value, default=str))
    # Sorted: the order of runs must not make two set-ups differ.
    return ", ".join(sorted(texts))


def with_telling_labels(groups: Sequence[Group]) -> list[Group]:
    """Set-ups with long names are labelled by the first keys that tell them apart: `effective 25`.

    They keep their names where no keys do, or too many.
    """
    if max(len(group.label) for group in groups) <= LONGEST_NAME:
        return list(groups)
    # The seed differs within a set-up, and a hash tells a reader nothing.
    telling = [key for key in differing_keys(groups) if key.name not in ("seed", "code")]
    # The labels of one key may be the same for two set-ups, so keys are added one at a time.
    for count in range(1, len(telling) + 1):
        # As few keys as tell all of them apart.
        labels = [_label(telling[:count], index) for index in range(len(groups))]
        if len(set(labels)) == len(labels) and max(map(len, labels)) <= 2 * LONGEST_NAME:
            return [Group(label, group.runs) for label, group in zip(labels, groups, strict=True)]
    return list(groups)


def _label(keys: Sequence[Key], index: int) -> str:
    """Of the set-up with this index."""
    parts = []
    for key in keys:
        last_part = key.name.rpartition(".")[2].replace("_", " ")
        parts.append(f"{last_part} {key.values[index]}")
    return ", ".join(parts)


def machines(runs: Sequence[Run]) -> list[str]:
    """Hosts and devices, each pair once; empty unless hosts or devices differ.

    What is unknown makes no difference.
    """
    hosts = [run.environment.get("host") for run in runs]
    devices = [run.derived.get("device") for run in runs]
    if len(set(hosts) - {None}) < 2 and len(set(devices) - {None}) < 2:
        return []
    names = []
    for pair in zip(hosts, devices, strict=True):
        name = ", ".join(str(part) for part in pair if part is not None)
        if name and name not in names:
            names.append(name)
    return names
