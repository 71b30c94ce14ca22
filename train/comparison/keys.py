"""Keys in which set-ups differ, and whether they change what is computed. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.comparison.group import EXECUTED, Group
from train.comparison.run import Run
from train.config import flatten, under

MATHEMATICS, EXECUTION = "mathematics", "execution"
NOT_TOLD = ("name", "output_dir", "wandb", "batch.micro", "batch.accumulation_steps")
"""Keys that name a run, or that show as what followed from them."""
SURROUNDINGS = (
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
"""What is told of the environment."""
ABSENT = "-"
LONGEST_NAME = 24
"""Characters of a label that is made of the names of runs."""


@dataclass(frozen=True)
class Key:
    name: str
    kind: str
    values: tuple[str, ...]  # of each set-up; several where its runs differ


def differing(groups: Sequence[Group]) -> list[Key]:
    """Mathematics first."""
    found = []
    for kind, tell in ((MATHEMATICS, _mathematics), (EXECUTION, _execution)):
        told = [[tell(run) for run in group.runs] for group in groups]
        for name in dict.fromkeys(key for runs in told for run in runs for key in run):
            values = tuple(_shown(run.get(name) for run in runs) for runs in told)
            # W&B does not know it
            if len(set(values)) > 1 and not (name == "code" and ABSENT in values):
                found.append(Key(name, kind, values))
    return found


def relabelled(groups: Sequence[Group]) -> list[Group]:
    """Set-ups whose names are long are called by the first keys that tell them apart: `effective
    25`.
    """
    if max(len(group.label) for group in groups) <= LONGEST_NAME:
        return list(groups)
    telling = [key for key in differing(groups) if key.name not in ("seed", "code")]
    for count in range(1, len(telling) + 1):
        labels = [
            ", ".join(f"{_last(key)} {key.values[i]}" for key in telling[:count])
            for i in range(len(groups))
        ]
        if len(set(labels)) == len(labels) and max(map(len, labels)) <= 2 * LONGEST_NAME:
            return [Group(label, group.runs) for label, group in zip(labels, groups, strict=True)]
    return list(groups)


def machines(runs: Sequence[Run]) -> list[str]:
    """Hosts and devices, each once, where more than one is known of either; what is not known makes
    no difference.
    """
    told = [(run.environment.get("host"), run.derived.get("device")) for run in runs]
    if all(
        len({part for part in parts if part is not None}) < 2 for parts in zip(*told, strict=True)
    ):
        return []
    places = (", ".join(str(part) for part in place if part is not None) for place in told)
    return list(dict.fromkeys(filter(None, places)))


def _last(key: Key) -> str:
    return key.name.rpartition(".")[2].replace("_", " ")


def _mathematics(run: Run) -> Mapping[str, Any]:
    changes = {"history": "; ".join(run.changes)} if run.changes else {}
    return {**run.identity, **changes}


def _execution(run: Run) -> dict[str, Any]:
    executed = {key: run.derived[key] for key in EXECUTED if key in run.derived}
    return (
        executed | _without(run.execution, NOT_TOLD) | _only(flatten(run.environment), SURROUNDINGS)
    )


def _without(flat: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if not under(key, left_out)}


def _only(flat: Mapping[str, Any], kept: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if under(key, kept)}


def _shown(values: Any) -> str:
    """`0, 1, 2` for the seeds of a group; a key that is unset, or not recorded, is a dash."""
    several = dict.fromkeys(ABSENT if value is None else _text(value) for value in values)
    return ", ".join(sorted(several)) if len(several) > 1 else next(iter(several), ABSENT)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
