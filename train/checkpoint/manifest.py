"""manifest.json: written last, names every other file with size and sha256. Without it there is no
checkpoint.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from train.disk import MAYBE_TEXT, Shape, Unreadable, misfit, parse, read_bytes

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")

SHAPE: Shape = {"format": int, "step": int, "world_size": int, "files": dict, "run?": MAYBE_TEXT}
ENTRY: Shape = {"bytes": int, "sha256": str}

Entries = Mapping[str, Mapping[str, Any]]
"""{file name: {"bytes": size, "sha256": digest}}"""


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def name_of(step: int) -> str:
    return f"step-{step:08}"


def step_of(path: Path) -> int:
    """Raises Damaged for a folder that has not the name of a checkpoint."""
    found = NAME.fullmatch(path.name)
    if not found:
        raise Damaged(f"{path} is not the folder of a checkpoint, such as {name_of(100)}")
    return int(found[1])


def entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def render(step: int, world_size: int, files: Entries, run: str | None = None) -> bytes:
    """`run`: the id of the run that it belongs to; None: of an earlier version, which
    wrote none.
    """
    told = {"format": 1, "step": step, "world_size": world_size, "files": dict(files)}
    if run is not None:
        told["run"] = run
    text = json.dumps(told, indent=1, sort_keys=True)
    return json.dumps(
        told | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True
    ).encode()


def verify(folder: Path, contents: bool = True, needed: Collection[str] = ()) -> dict[str, Any]:
    """The manifest of a checkpoint, which names at least the files `needed`.

    Raises Damaged where a file is not as it says; without `contents` only sizes are looked at,
    which is quick.
    """
    try:
        told = _manifest(folder)
        for name, expected in told["files"].items():
            _check_file(folder, name, expected, contents)
    except (OSError, Unreadable) as error:
        raise Damaged(f"{folder} has no readable {MANIFEST} ({error})") from None
    if missing := sorted(set(needed) - told["files"].keys()):
        raise Damaged(f"{folder / MANIFEST} names no {missing[0]}")
    return told


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    written = read_bytes(path, through_links=False)
    told = parse(written)
    wrong = misfit(told, SHAPE)
    if not wrong:
        problems = (misfit(each, ENTRY, f"files.{name}") for name, each in told["files"].items())
        wrong = next(filter(None, problems), "" if told["files"] else "it names no files")
    if wrong:
        raise Damaged(f"{path} is damaged: {wrong}")
    if written != render(told["step"], told["world_size"], told["files"], told.get("run")):
        raise Damaged(f"{path} has been changed")
    if told["step"] != step_of(folder):
        raise Damaged(f"{folder} holds step {told['step']}")
    return dict(told)


def _check_file(folder: Path, name: str, expected: Mapping[str, Any], contents: bool) -> None:
    path = folder / name
    try:
        there = path.parent == folder and not path.is_symlink() and path.is_file()
    except ValueError:  # a name with a null byte
        there = False
    if not there:
        raise Damaged(f"{path} is missing")
    if path.stat().st_size != expected["bytes"] or (contents and entry(path) != expected):
        raise Damaged(f"{path} is not what was written")
