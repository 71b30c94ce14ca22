"""The launcher file of accelerate, as far as a launch depends on it.

Read by yaml itself: accelerate's own reader costs an import of torch, 2.5 CPU seconds (accelerate 1.15).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.launching.arguments import CLONE, Arguments, LaunchRefused

PLAIN: dict[str, tuple[Any, ...]] = {
    "compute_environment": ("LOCAL_MACHINE",),
    "distributed_type": ("NO", "no", False, "MULTI_CPU", "MULTI_GPU"),
    "debug": (False,),
    "enable_cpu_affinity": (False,),
    "gpu_ids": ("all",),
    "num_machines": (1,),
    "dynamo_backend": ("NO", "no", False),
    "downcast_bf16": ("no", False),
    "machine_rank": (0,),
}
"""Values under which one rank needs no launcher of its own; those of the keys below do not matter to it."""
WITHOUT_MEANING = {"main_process_port", "main_process_ip", "main_training_function", "rdzv_backend", "same_network"}
KNOWN = {"num_processes", "mixed_precision", "use_cpu"}


@dataclass(frozen=True)
class LauncherFile:
    path: Path
    values: dict[str, Any]
    users_own: bool
    """Not the one that is taken where LAUNCHER names none."""

    def get(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def names_no_engine(self) -> bool:
        return self.get("distributed_type") in (None, "NO", "no", False, "MULTI_CPU")

    @property
    def names_gpus(self) -> bool:
        return self.get("gpu_ids") not in (None, "all", "")

    @property
    def is_plain(self) -> bool:
        """Says nothing that only accelerate's launcher can do."""
        for key, value in self.values.items():
            if key in WITHOUT_MEANING or key in KNOWN or value in (None, {}):
                continue
            if value not in PLAIN.get(key, ()):
                return False
        return True

    @property
    def mixed_precision(self) -> str:
        value = self.get("mixed_precision")
        return "no" if value in (None, False) else str(value)  # a bare `no` is false in YAML


def find(asked: str | None) -> LauncherFile:
    default = CLONE / "configs" / "accelerate" / "ddp.yaml"
    if not default.exists():  # of an installed package
        default = Path(__file__).parent / "ddp.yaml"
    if not asked:
        return LauncherFile(default, _read(default), users_own=False)
    for path in (Path(asked), CLONE / asked):
        if path.is_file():
            return LauncherFile(path, _read(path), users_own=path.resolve() != default.resolve())
    raise LaunchRefused(
        f"launch: there is no launcher file LAUNCHER={asked}\n"
        f"  got:  neither here ({Path.cwd()}) nor in {CLONE} is there a file of that name\n"
        f"  why:  accelerate would take your own default file, and silently train another way\n"
        f"  type: ls {default.parent}"
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
        f"  type: accelerate config --config_file {path}"
    )


def setting(name: str, arguments: Arguments, file: LauncherFile) -> str | None:
    """A setting of accelerate: a flag, else the launcher file, else None."""
    value = arguments.flag(name)
    if value is None and file.get(name) is not None:
        value = str(file.get(name))
    return value
