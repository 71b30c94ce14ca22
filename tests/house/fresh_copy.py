"""A copy of the repository, as a newcomer would have it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_repository(folder: Path) -> None:
    """The tracked files, as a clone would have them, and those that are new and not ignored."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def write_from_guide(name: str, folder: Path) -> None:
    """A file that the guide shows, such as my/net.py."""
    guide = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "guide").glob("*.md")))
    (block,) = re.findall(
        rf"^```\w+\n# {re.escape(name)}\n(.*?)^```", guide, re.MULTILINE | re.DOTALL
    )
    (folder / Path(name).name).write_text(block)


def active_environment() -> dict[str, str]:
    """The environment of these tests is the active one: launch.sh then makes none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix, "WANDB_MODE": "disabled"}
