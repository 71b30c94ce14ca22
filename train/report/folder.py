"""The run folder: OUTPUT_DIR/NAME with all that is kept of a run, and what a second start of the same name does."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from train.config import Config, differences
from train.errors import FAILED, UserError, ending
from train.plan.run_plan import RunPlan
from train.redaction import clean, clean_known
from train.report.differing import lines, other_run
from train.report.restarts import RESTARTS, job_id, pause


class FolderRefused(UserError):
    """A run of this name is there, and going on would lose it; the message holds the lines to paste."""


Find = Callable[[Path], Path | None]
Stopped = Callable[[], bool]

_LOCKS: dict[Path, TextIO] = {}
"""Of the folders that this process trains into; the system lets go of them when it ends, however it ends."""


def _leave_locks_to_parent() -> None:
    """A data worker is forked from its rank and may outlive it: for a moment, or for ever where it is stuck."""
    for lock in _LOCKS.values():
        lock.close()
    _LOCKS.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


class AlreadyFinished(RuntimeError):
    """This very run has been trained to its end."""


@dataclass(frozen=True)
class RunFolder:
    path: Path
    moved_to: Path | None = None  # where an older run of the name is now
    resumed_from: Path | None = None  # the checkpoint that the run goes on from
    changed: tuple[str, ...] = ()  # lines: what is not as it was when that was written

    def release(self) -> None:
        """The run has ended: others may have the folder."""
        lock = _LOCKS.pop(self.path, None)
        if lock:
            (self.path / ".lock").unlink(missing_ok=True)
            lock.close()

    def end_early(self, reason: str, step: int = 0, code: int = FAILED) -> None:
        """The run failed where there was nobody to tell it."""
        with suppress(OSError):  # a full disk must not hide why
            self.write_json("ended.json", ending(reason, code, step))
        self.release()

    def write_text(self, name: str, text: str) -> None:
        """All of it or nothing, whenever a kill comes."""
        unfinished = self.path / f".{name}.unfinished"
        unfinished.write_text(clean_known(text), encoding="utf-8")
        unfinished.replace(self.path / name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(clean(value), indent=2, default=lambda item: clean(str(item))) + "\n")


def claim(config: Config, plan: RunPlan, newest: Find, named: Find, stopped: Stopped) -> RunFolder:
    """The folder of a run that starts, or goes on, now.

    `newest(RUN/checkpoints)` finds the checkpoint to go on from, `named(path)` checks the one that checkpoint.resume
    names; `stopped()` ends a pause before a restart. A folder that is there already goes on where it holds the same
    mathematics and a checkpoint; it is moved to NAME.1 under checkpoint.resume=never, and where the launcher or the
    scheduler starts a job again that had none yet. Else AlreadyFinished is raised where it holds the same run,
    finished, and FolderRefused where it holds anything else, and always while another process trains into it, or
    nothing can be written there.
    """
    path = Path(config.output_dir) / plan.name
    try:
        return _claim(path, config, plan, newest, named, stopped)
    except OSError as error:
        raise cannot_write(path, error) from error


def _claim(path: Path, config: Config, plan: RunPlan, newest: Find, named: Find, stopped: Stopped) -> RunFolder:
    resume = config.checkpoint.resume
    chosen = named(Path(resume)) if resume not in ("auto", "never") else None
    if not path.exists():
        return _make(path, chosen)
    lock = _lock(path)
    try:
        restart = _is_restart(path)
        if resume == "never" and not restart:
            return _make_instead(path, lock, None)
        own = chosen is not None and chosen.resolve().is_relative_to(path.resolve()) and not restart
        if not own:
            _check_same(path, plan, restart)
        found = chosen if own else newest(path / "checkpoints")
        if found is None and not restart and (path / "plan.json").exists():
            raise FolderRefused(_without_checkpoint(path))
        restarts = pause(path, found, config.runtime.timeout_seconds, stopped) if restart else None
        if found is None:
            folder = _make_instead(path, lock, chosen)
        else:
            (path / "ended.json").unlink(missing_ok=True)
            folder = RunFolder(path, resumed_from=found, changed=_changes(path, plan))
            _LOCKS[path] = lock
    except BaseException:
        lock.close()
        raise
    if restarts:
        folder.write_text(RESTARTS, restarts)
    return folder


def _make(path: Path, resumed_from: Path | None, moved_to: Path | None = None) -> RunFolder:
    path.mkdir(parents=True)
    _LOCKS[path] = _lock(path)
    return RunFolder(path, moved_to, resumed_from)


def cannot_write(path: Path, error: OSError) -> FolderRefused:
    why = error.strerror or error
    return FolderRefused(
        f"cannot write into {path}: {why}. Type: output_dir=ANOTHER, or the same again once that is mended"
    )


def _make_instead(path: Path, lock: TextIO, resumed_from: Path | None) -> RunFolder:
    moved_to = _free_number(path)
    path.rename(moved_to)
    lock.close()  # only now: nobody else may take a folder that is about to move
    return _make(path, resumed_from, moved_to)


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
    if not (path / ".lock").exists() or os.fstat(file.fileno()).st_ino != (path / ".lock").stat().st_ino:
        file.close()  # it was let go of, and removed, in the moment between opening and locking it
        return _lock(path)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_restart(path: Path) -> bool:
    """The same job, started again by its launcher or scheduler before it had finished."""
    if _read(path / "ended.json").get("reason") == "finished":
        return False
    again = {
        "ISOBATCH_ATTEMPT": True,  # of one launch.sh
        "TORCHELASTIC_RUN_ID": os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0",
        "SLURM_JOB_ID": os.environ.get("SLURM_RESTART_COUNT", "0") != "0",
    }
    earlier, now = _read(path / "environment.json").get("job", {}), job_id()
    return any(again[name] and earlier.get(name) == value for name, value in now.items())


def _check_same(path: Path, plan: RunPlan, restart: bool) -> None:
    """Raises FolderRefused where the folder holds anything but this run, AlreadyFinished where that has finished."""
    ended, earlier = _read(path / "ended.json"), _read(path / "plan.json")
    if "identity" not in earlier:
        if restart or _has_not_begun(path):
            return
        raise FolderRefused(f"{path} exists and is not a run folder. Type: name=ANOTHER, or output_dir=ANOTHER")
    differing = differences(earlier["identity"], plan.identity)
    if "data" not in earlier["identity"]:  # written before it was looked at: nothing is known of it
        differing.pop("data", None)
    finished = ended.get("reason") == "finished"
    if finished and plan.total_steps > ended["step"] and all(key.startswith("duration.") for key in differing):
        return  # it goes on for longer
    if differing:
        all_the_same = f"\n  go on all the same:           checkpoint.resume={path}"
        raise FolderRefused(f"{path} holds {other_run(differing)}\nType one of:\n{_ways_out(path)}{all_the_same}")
    if finished:
        raise AlreadyFinished(
            f"{path} holds this very run, finished at step {ended['step']}. To train again:\n{_ways_out(path)}"
        )


def _has_not_begun(path: Path) -> bool:
    """A start that was killed, or found no room, before it had written all down: plan.json comes last."""
    names = {file.name for file in path.iterdir()}
    return "plan.json" not in names and (
        "environment.json" in names or names <= {".lock", ".environment.json.unfinished"}
    )


def _without_checkpoint(path: Path) -> str:
    ended = _read(path / "ended.json")
    state = f"ended at step {ended['step']} ({ended['reason']})" if ended else "has not ended, or was killed"
    return f"{path} holds this very run, which {state} without a checkpoint. Type one of:\n{_ways_out(path)}"


def _ways_out(path: Path) -> str:
    return (
        f"  another name:                name={_free_name(path)}\n"
        f"  start over, keep the old one: checkpoint.resume=never   (moves it to {_free_number(path)})"
    )


def _changes(path: Path, plan: RunPlan) -> tuple[str, ...]:
    """What differs from the last start of this run: mathematics, where the user insisted, and execution."""
    earlier, now = _read(path / "plan.json"), plan.as_dict()
    batch = differences(earlier.get("batch", {}), now["batch"])
    execution = {key: pair for key, pair in batch.items() if key not in ("effective", "dataset_size", "drop_tail")}
    data = differences(earlier.get("data", plan.data), plan.data)
    held_out = {f"data of {split}": pair for split, pair in data.items() if split != plan.identity["data.split"]}
    return tuple(lines({**differences(earlier.get("identity", {}), plan.identity), **execution, **held_out}))


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
