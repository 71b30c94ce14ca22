"""Run folders to runs. A folder that is damaged is named, with the reason, and left out."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from train.comparison.online import read_wandb
from train.comparison.rows import parse_rows, split_config
from train.comparison.run import Run
from train.config.yaml_text import yaml_text
from train.disk import Shape, Unreadable, open_blocks, read_json, shape_error
from train.errors import UserError
from train.installation import LAUNCH, command

PLAN: Shape = {
    "identity": dict,
    "derived": {"curve_hash": str, "recipe_hash": str, "segments?": list},
}
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
READERS = 4  # at a time: Arrow reads numbers beside Python
RUN_FILES = ("plan.json", "metrics.jsonl")


class CannotRead(UserError):
    """What was named holds no run that can be compared; the message says what to type."""


@dataclass(frozen=True)
class LeftOut:
    where: str
    why: str


@dataclass
class Found:
    """What became of the arguments."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, where: str, read: "Run | str") -> None:
        if isinstance(read, Run):
            self.runs.append(read)
        else:
            self.left_out.append(LeftOut(where, read))


def read_folder(folder: Path) -> "Run | str":
    """The run in it, or why there is none."""
    plan = _json(folder / "plan.json")
    if isinstance(plan, str):
        return plan
    if wrong := shape_error(plan, PLAN):
        return f"its plan.json is damaged: {wrong}"
    try:
        rows, remarks = parse_rows(open_blocks(folder / "metrics.jsonl"))
    except OSError as error:
        return f"its metrics.jsonl cannot be read: {error.strerror}"
    except Unreadable as error:
        return f"its metrics.jsonl cannot be read: {error}"
    if not len(rows):
        return "its metrics.jsonl holds no row: it ended before one was due, or has just begun"
    environment, ended = _json(folder / "environment.json"), _json(folder / "ended.json")
    if isinstance(environment, str):
        remarks.append(f"its host and versions are unknown: {environment}")
    execution = _execution(folder / "config.yaml", remarks)
    return Run(
        where=str(folder),
        name=str(plan.get("name") or folder.name),
        identity=plan["identity"],
        execution=execution,
        derived=plan["derived"],
        environment=environment if isinstance(environment, dict) else {},
        ended=None if isinstance(ended, str) else str(ended.get("reason")),
        rows=rows,
        remarks=tuple(remarks),
    )


def run_folders(parent: Path) -> Iterator[Path]:
    """This folder if it is a run's, else every run folder below, in the order of their names."""
    for folder, below, files in os.walk(parent):
        if any(name in files for name in RUN_FILES):
            below.clear()
            yield Path(folder)
        below.sort()


def _execution(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        config = yaml.load(yaml_text(path), LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        config = None
        remarks.append(
            f"its config.yaml cannot be read ({type(error).__name__}): execution keys are unknown"
        )
    return split_config(config)[1] if isinstance(config, dict) else {}


def _json(path: Path) -> "dict[str, Any] | str":
    """The mapping in a file, or why there is none."""
    try:
        value: dict[str, Any] = read_json(path)
    except FileNotFoundError as error:
        return f"its {path.name} cannot be read: {error.strerror}"
    except Unreadable as error:
        return f"its {path.name} {str(error).removeprefix(str(path)).strip()}"
    return value


def find(arguments: Sequence[str]) -> Found:
    """All runs that are named, each once, in order.

    Raises CannotRead where an argument names none, or none of them can be used.
    """
    found, seen = Found(), set()
    for argument in arguments:
        for where, read in _runs_of(argument):
            if where not in seen:
                seen.add(where)
                found.add(where, read)
    if not found.runs:
        told = "\n".join(f"  got:  {each.where}: {each.why}" for each in found.left_out)
        raise CannotRead(
            f"compare: no run can be compared\n{told}\n  type: {LAUNCH}   (to train one)"
        )
    return found


def _runs_of(argument: str) -> "Iterator[tuple[str, Run | str]]":
    path = Path(argument)
    if not path.is_dir():
        if not re.fullmatch(r"[^/\s]+/[^/\s]+/[^/\s]+", argument):
            raise CannotRead(
                f"compare: there is no folder {argument}\n"
                f"  got:  {argument}, from {Path.cwd()}\n"
                "  why:  it takes run folders, folders that hold some, or entity/project/run in "
                f"W&B\n  type: {command('compare')} runs   (all runs in runs/)"
            )
        yield argument, read_wandb(argument)
        return
    folders = list(run_folders(path))
    if not folders:
        raise CannotRead(
            f"compare: {argument} is no run folder\n"
            f"  got:  a folder in which, and below which, no {' or '.join(RUN_FILES)} lies\n"
            "  why:  a run leaves both in OUTPUT_DIR/NAME/\n"
            f"  type: {command('compare')} runs   (all runs in runs/)"
        )
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as readers:
        several = list(
            zip(
                (str(folder.resolve()) for folder in folders),
                readers.map(read_folder, folders),
                strict=True,
            )
        )
    # the first to be trained comes first
    yield from sorted(several, key=lambda each: _started(each[1]))


def _started(read: "Run | str") -> str:
    return str(read.environment.get("started_at", "")) if isinstance(read, Run) else ""
