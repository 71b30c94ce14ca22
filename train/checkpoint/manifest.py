"""manifest.json: written last, names every other file with size and sha256. Without it there is no checkpoint."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")

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
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def render(step: int, world_size: int, files: Entries) -> bytes:
    told = {"format": 1, "step": step, "world_size": world_size, "files": dict(files)}
    text = json.dumps(told, indent=1, sort_keys=True)
    return json.dumps(told | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True).encode()


def verify(folder: Path, contents: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises Damaged where a file is not as it says; without `contents` only sizes are
    looked at, which is quick."""
    try:
        written = (folder / MANIFEST).read_bytes()
        told: dict[str, Any] = json.loads(written)
        step, world_size, files = told["step"], told["world_size"], told["files"]
        if written != render(step, world_size, files):
            raise Damaged(f"{folder / MANIFEST} has been changed")
        if step != step_of(folder):
            raise Damaged(f"{folder} holds step {step}")
        for name, expected in files.items():
            path = folder / name
            if path.parent != folder or path.is_symlink() or not path.is_file():
                raise Damaged(f"{path} is missing")
            if path.stat().st_size != expected["bytes"] or (contents and entry(path) != expected):
                raise Damaged(f"{path} is not what was written")
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{folder} has no readable {MANIFEST} ({type(error).__name__})") from None
    return told
