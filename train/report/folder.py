"""The run folder: OUTPUT_DIR/NAME with all that is kept of a run, and what a second start of the same name does."""

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from train.config import Config, differences
from train.report.ending import FAILED, ending
from train.report.plan import RunPlan
from train.report.redact import redacted


class FolderRefused(RuntimeError):
    """A run of this name is there, and going on would lose it; the message holds the lines to paste."""


_LOCKS: dict[Path, TextIO] = {}
"""Of the folders that this process trains into; the system lets go of them when it ends, however it ends."""


class AlreadyFinished(RuntimeError):
    """This very run has been trained to its end."""


@dataclass(frozen=True)
class RunFolder:
    path: Path
    moved_to: Path | None = None  # where an older run of the name is now

    def release(self) -> None:
        """The run has ended: others may have the folder."""
        lock = _LOCKS.pop(self.path, None)
        if lock:
            (self.path / ".lock").unlink(missing_ok=True)
            lock.close()

    def end_early(self, reason: str) -> None:
        """The run failed before there was anybody to tell it."""
        self.write_json("ended.json", ending(redacted(reason), FAILED, 0))
        self.release()

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(value, indent=2, default=str) + "\n")


def claim(config: Config, plan: RunPlan) -> RunFolder:
    """Make the folder of a run that starts now.

    A folder that is there already is moved to NAME.1 under checkpoint.resume=never, and where the launcher or the
    scheduler starts the same job again. Else AlreadyFinished is raised where it holds the same run, finished, and
    FolderRefused where it holds anything else, and always while another process trains into it.
    """
    path = Path(config.output_dir) / plan.name
    moved_to = None
    if path.exists():
        _lock(path).close()
        if config.checkpoint.resume != "never" and not _is_restart(path):
            raise _second_start(path, plan.identity)
        moved_to = _free_number(path)
        path.rename(moved_to)
    try:
        path.mkdir(parents=True)
        _LOCKS[path] = _lock(path)
    except OSError as error:
        raise FolderRefused(f"cannot make {path}: {error.strerror}. Type: output_dir=ANOTHER") from error
    return RunFolder(path, moved_to)


def _lock(path: Path) -> TextIO:
    """Raises FolderRefused where another process has it."""
    file = (path / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise FolderRefused(f"{path} is being trained into by {owner}. Type: name={_free_name(path)}") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def job_id() -> dict[str, str]:
    """What stays the same when the scheduler or the elastic launcher starts a job again; empty where nobody would."""
    names = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    found = {name: os.environ[name] for name in names if os.environ.get(name, "none") != "none"}
    return found | ({"ISOBATCH_ATTEMPT": os.environ["ISOBATCH_ATTEMPT"]} if "ISOBATCH_ATTEMPT" in os.environ else {})


def _is_restart(path: Path) -> bool:
    """The same job, started again by its launcher or scheduler, and no end that the earlier attempt has told."""
    if (path / "ended.json").exists():
        return False
    again = {
        "ISOBATCH_ATTEMPT": True,  # of one launch.sh
        "TORCHELASTIC_RUN_ID": os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0",
        "SLURM_JOB_ID": os.environ.get("SLURM_RESTART_COUNT", "0") != "0",
    }
    earlier, now = _read(path / "environment.json").get("job", {}), job_id()
    return any(again[name] and earlier.get(name) == value for name, value in now.items())


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
