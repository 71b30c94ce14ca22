"""The launcher file of accelerate, as far as a launch depends on it.

Read by yaml: accelerate's own reader imports torch, which takes 2.5 CPU seconds (accelerate 1.15).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.installation import CONFIGS, ROOT, find_shipped
from train.launching.arguments import Arguments, LaunchRefused

DEFAULT = CONFIGS / "accelerate" / "ddp.yaml"
"""The only file that accelerate itself reads: the settings of another become flags and variables.

accelerate 1.15 drops rdzv_backend, same_network and enable_cpu_affinity of a file, and fails at a
bare `no`.
"""


@dataclass(frozen=True)
class LauncherFile:
    path: Path
    values: dict[str, Any]
    users_own: bool
    """Not the default."""

    def get(self, name: str) -> Any:
        return self.values.get(name)


def find(name: str | None) -> LauncherFile:
    if not name:
        return LauncherFile(DEFAULT, _read(DEFAULT), users_own=False)
    # A name such as configs/accelerate/ddp.yaml holds from any folder.
    for path in (find_shipped(Path(name)), ROOT / name):
        if path.is_file():
            return LauncherFile(path, _read(path), users_own=path.resolve() != DEFAULT.resolve())
    raise LaunchRefused(
        f"launch: there is no launcher file LAUNCHER={name}\n"
        f"  got:  no file of that name here ({Path.cwd()}) or in {CONFIGS.parent}\n"
        f"  why:  accelerate would take your own default file, and silently train another way\n"
        f"  run:  ls {DEFAULT.parent}"
    )


def _read(path: Path) -> dict[str, Any]:
    import yaml  # here: --help needs none

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _no_launcher_file(path, str(error).partition("\n")[0]) from error
    if not isinstance(values, dict):
        raise _no_launcher_file(path, f"it holds a {type(values).__name__}, not keys with values")
    return values


def _no_launcher_file(path: Path, why: str) -> LaunchRefused:
    return LaunchRefused(
        f"launch: {path} is no launcher file of accelerate\n  got:  {why}\n"
        f"  run:  accelerate config --config_file {path}"
    )


def setting(name: str, arguments: Arguments, file: LauncherFile) -> str | None:
    """A setting of accelerate: a flag, else the launcher file, else None."""
    value = arguments.flag(name)
    if value is None and file.get(name) is not None:
        value = str(file.get(name))
    return value
