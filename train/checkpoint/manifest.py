"""manifest.json: written last, names every other file with size and sha256. Without it there is no
checkpoint.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from train.disk import MAYBE_TEXT, Shape, Unreadable, parse, read_bytes, shape_error

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
    """Raises Damaged for a folder without the name of a checkpoint."""
    match = NAME.fullmatch(path.name)
    if not match:
        raise Damaged(f"{path} is not the folder of a checkpoint, such as {name_of(100)}")
    return int(match[1])


def entry(path: Path) -> dict[str, Any]:
    # In pieces (file_digest, Python 3.11): a file of weights may be larger than the memory.
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def render(step: int, world_size: int, files: Entries, run: str | None = None) -> bytes:
    """The bytes of a manifest, which hold their own digest.

    `run`: the id of the run that it belongs to; None: of an earlier version, which wrote none.
    """
    manifest = {"format": 1, "step": step, "world_size": world_size, "files": dict(files)}
    if run is not None:
        manifest["run"] = run
    # Sorted, so that equal contents are equal bytes: _manifest renders again and compares.
    text = json.dumps(manifest, indent=1, sort_keys=True)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def verify(folder: Path, contents: bool = True, needed: Collection[str] = ()) -> dict[str, Any]:
    """The manifest of a checkpoint, which names at least the files `needed`.

    Raises Damaged where a file differs from it; without `contents` only sizes are compared, which
    is quick.
    """
    try:
        manifest = _manifest(folder)
        # No file is opened before the manifest has been found to be as it was written: names come
        # from it.
        for name, expected in manifest["files"].items():
            _check_file(folder, name, expected, contents)
    except (OSError, Unreadable) as error:
        raise Damaged(f"{folder} has no readable {MANIFEST} ({error})") from None
    # A manifest may be whole and name too little: a checkpoint without the state is no start.
    missing = sorted(set(needed) - manifest["files"].keys())
    if missing:
        raise Damaged(f"{folder / MANIFEST} names no {missing[0]}")
    return manifest


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    # Not through a link, which could lead to the manifest of another run.
    written = read_bytes(path, through_links=False)
    manifest = parse(written)
    # Before render, which takes these keys for granted.
    wrong = _shape_error(manifest)
    if wrong:
        raise Damaged(f"{path} is damaged: {wrong}")
    step = manifest["step"]
    # Its own digest is part of what is rendered: an edited manifest does not render to itself.
    expected = render(step, manifest["world_size"], manifest["files"], manifest.get("run"))
    if written != expected:
        raise Damaged(f"{path} has been changed")
    # A folder that was renamed by hand would be resumed at another step than its state.
    if step != step_of(folder):
        raise Damaged(f"{folder} holds step {step}")
    return dict(manifest)


def _shape_error(manifest: Any) -> str:
    """Why it cannot be a manifest; empty where it can."""
    wrong = shape_error(manifest, SHAPE)
    if wrong:
        return wrong
    if not manifest["files"]:
        return "it names no files"
    for name, file in manifest["files"].items():
        wrong = shape_error(file, ENTRY, f"files.{name}")
        if wrong:
            return wrong
    return ""


def _check_file(folder: Path, name: str, expected: Mapping[str, Any], contents: bool) -> None:
    path = folder / name
    try:
        # Not elsewhere: a name may hold "..".
        is_there = path.parent == folder and not path.is_symlink() and path.is_file()
    except ValueError:  # a name with a null byte
        is_there = False
    if not is_there:
        raise Damaged(f"{path} is missing")
    # The size first: it needs no reading, and finds a file that was cut short.
    if path.stat().st_size != expected["bytes"] or (contents and entry(path) != expected):
        raise Damaged(f"{path} is not what was written")
