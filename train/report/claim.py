"""What a start of a run does with the folder of its name: it makes it, goes on in it, moves it
away, or is refused.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from train.checkpoint import sweep
from train.checkpoint.manifest import verify
from train.config import Config, differences
from train.disk import ENDED, ENVIRONMENT, PLAN, Shape, Unreadable, first_free, read_json, remove
from train.errors import print_error
from train.plan.run_plan import RunPlan
from train.report.differing import lines, other_run
from train.report.folder import (
    RUN,
    FolderRefused,
    Hold,
    RunFolder,
    free_name,
    hold_folder,
    make_folder,
    new_id,
    take,
)
from train.report.restarts import RESTARTS, job_id, pause

Find = Callable[[Path, str | None], Path | None]
Named = Callable[[Path], Path]
Stopped = Callable[[], bool]

OWN = {
    "ended.json",
    "environment.json",
    "config.yaml",
    "git.patch",
    "log.txt",
    "restarts.json",
    "wandb",
    "checkpoints",
}
"""What a start that did not come to its plan.json may leave, beside names that begin with a dot."""
IN_IDENTITY = ("effective", "stages", "dataset_size", "drop_tail")
"""Fields of a plan's batch that are mathematics, and are compared with the others of that kind."""


class AlreadyFinished(RuntimeError):
    """This very run has been trained to its end."""


def claim(config: Config, plan: RunPlan, newest: Find, named: Named, stopped: Stopped) -> RunFolder:
    """The folder of a run that starts, or goes on, now.

    `newest(RUN/checkpoints, id of the run)` finds the checkpoint to go on from, `named(path)`
    checks the one that checkpoint.resume names; `stopped()` ends a pause before a restart. A folder
    that is there already goes on where it holds the same mathematics and a checkpoint; it is moved
    to NAME.1 under checkpoint.resume=never, and where the launcher or the scheduler starts a job
    again that had none yet. Else AlreadyFinished is raised where it holds the same run, finished,
    and FolderRefused where it holds anything else, and always while another process trains into it,
    or nothing can be written there.
    """
    path = Path(config.output_dir) / plan.name
    try:
        return _claim(path, config, plan, newest, named, stopped)
    except OSError as error:
        raise cannot_write(path, error) from error


def _claim(
    path: Path, config: Config, plan: RunPlan, newest: Find, named: Named, stopped: Stopped
) -> RunFolder:
    resume = config.checkpoint.resume
    chosen = named(Path(resume)) if resume not in ("auto", "never") else None
    if not os.path.lexists(path):
        with suppress(FileExistsError):  # another start was quicker: it holds the lock
            return _make(path, chosen)
    hold = hold_folder(path)
    try:
        restart = _is_restart(path)
        if resume == "never" and not restart:
            return _make_instead(path, hold, None)
        own = chosen is not None and chosen.resolve().is_relative_to(path.resolve()) and not restart
        if not own:
            _check_same(path, plan, restart)
        run = _run_of(path)
        found = chosen if own else newest(path / "checkpoints", run)
        if found is None and not restart and (path / "plan.json").exists():
            raise FolderRefused(_without_checkpoint(path))
        restarts = pause(path, found, config.runtime.timeout_seconds, stopped) if restart else None
        if found is None:
            folder = _make_instead(path, hold, chosen)
        else:
            folder = _go_on(path, hold, found, run, _changes(path, plan))
    except BaseException:
        with suppress(OSError):
            hold.close()
        raise
    if restarts:
        folder.write_text(RESTARTS, restarts)
    else:  # a new job counts from 0
        remove(folder.path / RESTARTS)
    return folder


def _go_on(
    path: Path, hold: Hold, found: Path, run: str | None, changed: tuple[str, ...]
) -> RunFolder:
    take(path, hold)
    folder = RunFolder(path, run=run, resumed_from=found, changed=changed)
    if run is None:  # of an earlier version
        folder.run = verify(found, contents=False).get("run") or new_id()
        folder.write_json(RUN, {"id": folder.run})
    remove(path / "ended.json")
    _sweep(path)
    return folder


def _sweep(path: Path) -> None:
    """What a kill has left of files and folders that were being written or removed."""
    sweep(path / "checkpoints")
    for folder in (path, path / "final"):
        for pattern in (".*.unfinished", ".*.removed", "metrics.unfinished"):
            for left in folder.glob(pattern):
                remove(left)


def _make(path: Path, resumed_from: Path | None, moved_to: Path | None = None) -> RunFolder:
    run = new_id()
    take(path, make_folder(path, run))
    return RunFolder(path, run=run, moved_to=moved_to, resumed_from=resumed_from)


def cannot_write(path: Path, error: OSError) -> FolderRefused:
    why = error.strerror or error
    where = error.filename or path
    return FolderRefused(
        f"cannot write into {path}: {where}: {why}. Type: output_dir=ANOTHER, or the same again "
        "once that is mended"
    )


def _make_instead(path: Path, hold: Hold, resumed_from: Path | None) -> RunFolder:
    moved_to = _free_number(path)
    path.rename(moved_to)
    hold.close()  # only now: nobody else may take a folder that is about to move
    return _make(path, resumed_from, moved_to)


def _run_of(path: Path) -> str | None:
    """The id of the run; None where an earlier version made the folder, or nothing readable tells
    it.
    """
    run: str | None = _read(path / RUN, {"id": str}).get("id")
    return run


def _is_restart(path: Path) -> bool:
    """The same job, started again by its launcher or scheduler before it had finished."""
    if _read(path / "ended.json", ENDED).get("reason") == "finished":
        return False
    again = {
        "ISOBATCH_ATTEMPT": True,  # of one launch.sh
        "TORCHELASTIC_RUN_ID": os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0",
        "SLURM_JOB_ID": os.environ.get("SLURM_RESTART_COUNT", "0") != "0",
    }
    earlier = _read(path / "environment.json", ENVIRONMENT).get("job", {})
    now = job_id()
    return any(again[name] and earlier.get(name) == value for name, value in now.items())


def _check_same(path: Path, plan: RunPlan, restart: bool) -> None:
    """Raises FolderRefused where the folder holds anything but this run, AlreadyFinished where that
    has finished.
    """
    ended = _read(path / "ended.json", ENDED)
    try:
        earlier = read_json(path / "plan.json", PLAN)
    except Unreadable as error:
        why = f"{error}: it cannot be told what was trained there"
        raise FolderRefused(f"{why}. Type one of:\n{_ways_out(path)}") from error
    except FileNotFoundError:
        if restart or _has_not_begun(path):
            return
        what = f"{path} exists and is not a run folder"
        raise FolderRefused(f"{what}. Type: name=ANOTHER, or output_dir=ANOTHER") from None
    differing = differences(earlier["identity"], plan.identity)
    if "data" not in earlier["identity"]:  # written before it was looked at: nothing is known of it
        differing.pop("data", None)
    finished = ended.get("reason") == "finished"
    if (
        finished
        and plan.total_steps > ended["step"]
        and all(key.startswith("duration.") for key in differing)
    ):
        return  # it goes on for longer
    if differing:
        all_the_same = f"\n  go on all the same:           checkpoint.resume={path}"
        raise FolderRefused(
            f"{path} holds {other_run(differing)}\nType one of:\n{_ways_out(path)}{all_the_same}"
        )
    if finished:
        raise AlreadyFinished(
            f"{path} holds this very run, finished at step {ended['step']}. To train "
            f"again:\n{_ways_out(path)}"
        )


def _has_not_begun(path: Path) -> bool:
    """A start that was killed, or found no room, before it had written all down: plan.json comes
    last.
    """
    names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    return RUN in names or "environment.json" in names or names <= OWN


def _without_checkpoint(path: Path) -> str:
    ended = _read(path / "ended.json", ENDED)
    state = (
        f"ended at step {ended['step']} ({ended['reason']})"
        if ended
        else "has not ended, or was killed"
    )
    return (
        f"{path} holds this very run, which {state} without a checkpoint. Type one "
        f"of:\n{_ways_out(path)}"
    )


def _ways_out(path: Path) -> str:
    return (
        f"  another name:                name={free_name(path)}\n"
        "  start over, keep the old one: checkpoint.resume=never   (moves it to "
        f"{_free_number(path)})"
    )


def _changes(path: Path, plan: RunPlan) -> tuple[str, ...]:
    """What differs from the last start of this run: mathematics, where the user insisted, and
    execution.
    """
    earlier = _read(path / "plan.json", PLAN)
    now = plan.as_dict()
    batch = differences(earlier.get("batch", {}), now["batch"])
    execution = {key: pair for key, pair in batch.items() if key not in IN_IDENTITY}
    data = differences(earlier.get("data", plan.data), plan.data)
    held_out = {
        f"data of {split}": pair
        for split, pair in data.items()
        if split != plan.identity["data.split"]
    }
    return tuple(
        lines({**differences(earlier.get("identity", {}), plan.identity), **execution, **held_out})
    )


def _read(path: Path, shape: Shape) -> dict[str, Any]:
    """Empty where it is not there, or says nothing that can be used."""
    try:
        value: dict[str, Any] = read_json(path, shape)
    except FileNotFoundError:
        return {}
    except Unreadable as error:
        print_error(f"{error}; passed over")
        return {}
    return value


def _free_number(path: Path) -> Path:
    return first_free(path.with_name(f"{path.name}.{number}") for number in count(1))
