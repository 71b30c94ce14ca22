"""Run folders to runs. A folder that is damaged is named, with the reason, and skipped."""

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
NUM_READERS = 4
"""Threads: Arrow parses numbers without Python's lock."""
RUN_FILES = ("plan.json", "metrics.jsonl")
RUN_ALL = f"  Run:  {command('compare')} runs   (all runs in runs/)"


class CannotRead(UserError):
    """The arguments name no run that can be compared; the message says what to type."""


@dataclass(frozen=True)
class SkippedRun:
    where: str
    why: str


@dataclass
class LoadedRuns:
    runs: list[Run] = field(default_factory=list)
    skipped: list[SkippedRun] = field(default_factory=list)

    def add(self, where: str, run_or_reason: "Run | str") -> None:
        if isinstance(run_or_reason, Run):
            self.runs.append(run_or_reason)
        else:
            self.skipped.append(SkippedRun(where, run_or_reason))


def load_runs(arguments: Sequence[str]) -> LoadedRuns:
    """All runs that are named, each once, in order.

    Raises CannotRead where an argument names none, or none of them can be read.
    """
    loaded = LoadedRuns()
    seen = set()
    # In the order of the arguments: the first set-up is what the others are compared with.
    for argument in arguments:
        for where, run_or_reason in _runs_of(argument):
            # A run may be named itself and by the folder that it is in.
            if where not in seen:
                seen.add(where)
                loaded.add(where, run_or_reason)
    # One that is damaged is a note, but with none left there is nothing to print.
    if not loaded.runs:
        reasons = "\n".join(f"  got:  {each.where}: {each.why}" for each in loaded.skipped)
        raise CannotRead(
            f"compare: no run can be compared\n{reasons}\n  Run:  {LAUNCH}   (to train one)"
        )
    return loaded


def _runs_of(argument: str) -> "Iterator[tuple[str, Run | str]]":
    """(where, the run or why it cannot be read)"""
    # A folder wins: its path may look like entity/project/run.
    path = Path(argument)
    if path.is_dir():
        yield from _runs_below(path)
    elif re.fullmatch(r"[^/\s]+/[^/\s]+/[^/\s]+", argument):
        yield argument, read_wandb(argument)
    else:
        raise CannotRead(
            f"compare: there is no folder {argument}\n"
            f"  got:  {argument}, from {Path.cwd()}\n"
            "  why:  it takes run folders, folders that hold some, or entity/project/run in "
            f"W&B\n{RUN_ALL}"
        )


def _runs_below(path: Path) -> "list[tuple[str, Run | str]]":
    folders = list(run_folders(path))
    if not folders:
        raise CannotRead(
            f"compare: {path} is no run folder\n"
            f"  got:  a folder without {' or '.join(RUN_FILES)} in it or below\n"
            f"  why:  a run leaves both in OUTPUT_DIR/NAME/\n{RUN_ALL}"
        )
    wheres = [str(folder.resolve()) for folder in folders]
    with ThreadPoolExecutor(min(NUM_READERS, os.cpu_count() or 1)) as readers:
        runs = list(zip(wheres, readers.map(read_folder, folders), strict=True))
    # The others are compared with the first, which is the one that was trained first.
    return sorted(runs, key=lambda each: _started_at(each[1]))


def _started_at(run: "Run | str") -> str:
    if isinstance(run, str):
        return ""
    return str(run.environment.get("started_at", ""))


def run_folders(parent: Path) -> Iterator[Path]:
    """This folder if it is a run's, else every run folder below, in the order of their names."""
    for folder, below, files in os.walk(parent):
        if any(name in files for name in RUN_FILES):
            # os.walk goes where `below` says: checkpoints and wandb files of a run are not
            # searched.
            below.clear()  # what lies in a run folder is part of that run
            yield Path(folder)
        below.sort()


def read_folder(folder: Path) -> "Run | str":
    """The run in it, or why there is none."""
    # First plan.json: without its hashes no run can be placed beside another.
    plan = _json(folder / "plan.json")
    if isinstance(plan, str):
        return plan
    if damage := shape_error(plan, PLAN):
        return f"its plan.json is damaged: {damage}"
    try:
        rows, remarks = parse_rows(open_blocks(folder / "metrics.jsonl"))
    except OSError as error:
        return f"its metrics.jsonl cannot be read: {error.strerror}"
    except Unreadable as error:
        return f"its metrics.jsonl cannot be read: {error}"
    # A run that has just begun is no damage, and is said in those words.
    if not len(rows):
        return "its metrics.jsonl holds no row: it ended before one was due, or has just begun"
    environment = _json(folder / "environment.json")
    # Not needed for any curve: the run is compared without it.
    if isinstance(environment, str):
        remarks.append(f"its host and versions are unknown: {environment}")
        environment = {}
    # Missing where the run is still training, or was killed.
    ended = _json(folder / "ended.json")
    execution = _execution(folder / "config.yaml", remarks)
    return Run(
        where=str(folder),
        name=str(plan.get("name") or folder.name),
        identity=plan["identity"],
        execution=execution,
        derived=plan["derived"],
        environment=environment,
        ended=None if isinstance(ended, str) else str(ended.get("reason")),
        rows=rows,
        remarks=tuple(remarks),
    )


def _execution(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        config = yaml.load(yaml_text(path), LOADER)
    # RecursionError: YAML may be nested deeper than Python's stack.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        remarks.append(
            f"its config.yaml cannot be read ({type(error).__name__}): execution keys are unknown"
        )
        return {}
    if not isinstance(config, dict):
        return {}
    _, execution = split_config(config)
    return execution


def _json(path: Path) -> "dict[str, Any] | str":
    """The mapping in a file, or why there is none."""
    try:
        value: dict[str, Any] = read_json(path)
    except FileNotFoundError as error:
        return f"its {path.name} cannot be read: {error.strerror}"
    except Unreadable as error:
        return f"its {path.name} {str(error).removeprefix(str(path)).strip()}"
    return value
