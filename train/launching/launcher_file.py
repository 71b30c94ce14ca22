"""The launcher file of accelerate, as far as a launch depends on it.

Read by yaml itself: accelerate's own reader costs an import of torch, 2.5 CPU seconds (accelerate
1.15).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.installation import CONFIGS, ROOT, find_shipped
from train.launching.arguments import Arguments, LaunchRefused

DEFAULT = CONFIGS / "accelerate" / "ddp.yaml"
"""The only file that accelerate itself reads: what is taken of another becomes flags, and nothing
of it acts unseen. accelerate 1.15 itself drops a file's rdzv_backend, same_network and
enable_cpu_affinity, and fails at a bare `no`.
"""


@dataclass(frozen=True)
class LauncherFile:
    path: Path
    values: dict[str, Any]
    users_own: bool
    """Not the one that is taken where LAUNCHER names none."""

    def get(self, name: str) -> Any:
        return self.values.get(name)


def find(asked: str | None) -> LauncherFile:
    if not asked:
        return LauncherFile(DEFAULT, _read(DEFAULT), users_own=False)
    for path in (find_shipped(Path(asked)), ROOT / asked):
        if path.is_file():
            return LauncherFile(path, _read(path), users_own=path.resolve() != DEFAULT.resolve())
    raise LaunchRefused(
        f"launch: there is no launcher file LAUNCHER={asked}\n"
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
