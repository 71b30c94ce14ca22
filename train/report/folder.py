"""The run folder: OUTPUT_DIR/NAME with all that is kept of a run, and what a second start of the same name does."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import Config, differences
from train.report.plan import RunPlan


class FolderRefused(RuntimeError):
    """A run of this name is there, and going on would lose it; the message holds the lines to paste."""


class AlreadyFinished(RuntimeError):
    """This very run has been trained to its end."""


@dataclass(frozen=True)
class RunFolder:
    path: Path
    moved_to: Path | None = None  # where an older run of the name is now

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(value, indent=2, default=str) + "\n")


def claim(config: Config, plan: RunPlan) -> RunFolder:
    """Make the folder of a run that starts now.

    A folder that is there already is moved to NAME.1 under checkpoint.resume=never, and where the launcher or the
    scheduler starts the same job again. Else AlreadyFinished is raised where it holds the same run, finished, and
    FolderRefused where it holds anything else.
    """
    path = Path(config.output_dir) / plan.name
    moved_to = None
    if path.exists():
        if config.checkpoint.resume != "never" and not _is_restart(path):
            raise _second_start(path, plan.identity)
        moved_to = _free_number(path)
        path.rename(moved_to)
    path.mkdir(parents=True)
    return RunFolder(path, moved_to)


def job_id() -> dict[str, str]:
    """What stays the same when the scheduler or the elastic launcher starts a job again; empty where nobody would."""
    names = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    found = {name: os.environ[name] for name in names if os.environ.get(name, "none") != "none"}
    return found | ({"ISOBATCH_ATTEMPT": os.environ["ISOBATCH_ATTEMPT"]} if "ISOBATCH_ATTEMPT" in os.environ else {})


def _is_restart(path: Path) -> bool:
    """The same job, not its first start, and no end of the earlier attempt that the run itself has told."""
    if (path / "ended.json").exists():
        return False
    earlier, now = _read(path / "environment.json").get("job", {}), job_id()
    return bool(now) and any(earlier.get(name) == value for name, value in now.items())


def _second_start(path: Path, identity: Mapping[str, Any]) -> Exception:
    ended, plan = _read(path / "ended.json"), _read(path / "plan.json")
    if "identity" not in plan:
        return FolderRefused(f"{path} exists and is not a run folder. Type: name=ANOTHER, or output_dir=ANOTHER")
    lines = (
        f"  another name:                name={_free_name(path)}\n"
        f"  start over, keep the old one: checkpoint.resume=never   (moves it to {_free_number(path)})"
    )
    differing = differences(plan["identity"], identity)
    if differing:
        shown = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in list(differing.items())[:12])
        return FolderRefused(f"{path} holds a run with other mathematics:\n{shown}\nType one of:\n{lines}")
    if ended.get("reason") == "finished":
        return AlreadyFinished(
            f"{path} holds this very run, finished at step {ended['step']}. To train again:\n{lines}"
        )
    state = f"ended at step {ended['step']} ({ended['reason']})" if ended else "has not ended, or was killed"
    return FolderRefused(f"{path} holds this very run, which {state} without a checkpoint. Type one of:\n{lines}")


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value


def _free_number(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _free_name(path: Path) -> str:
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return f"{path.name}-{number}"
