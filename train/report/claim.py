"""What a start of a run does with the folder of its name: make it, resume in it, move it away, or
refuse.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from train.checkpoint import sweep
from train.checkpoint.manifest import verify
from train.config import Config
from train.disk import remove
from train.plan.run_plan import RunPlan
from train.report.earlier_start import (
    changes,
    check_same,
    free_number,
    is_restart,
    run_of,
    without_checkpoint,
)
from train.report.folder import RUN, RunFolder, keep_hold, make_folder, new_id
from train.report.folder_lock import FolderRefused, Hold, hold_folder
from train.report.restarts import RESTARTS, pause

Newest = Callable[[Path, str | None], Path | None]
Named = Callable[[Path], Path]
Stopped = Callable[[], bool]


def claim(
    config: Config, plan: RunPlan, newest: Newest, named: Named, stopped: Stopped
) -> RunFolder:
    """The folder of a run that starts, or resumes, now.

    `newest(RUN/checkpoints, id of the run)` finds the checkpoint to resume from, `named(path)`
    checks the one that checkpoint.resume names; `stopped()` ends a pause before a restart.

    A folder that is there already continues where it holds the same mathematics and a checkpoint.
    It is moved to NAME.1 under checkpoint.resume=never, and where the launcher or the scheduler
    restarts a job that had no checkpoint yet. Raises AlreadyFinished where it holds the same run,
    finished; FolderRefused where it holds anything else, and always while another process trains
    into it, or nothing can be written there.
    """
    path = Path(config.output_dir) / plan.name
    try:
        return _claim(path, config, plan, newest, named, stopped)
    except OSError as error:
        raise cannot_write(path, error) from error


def _claim(
    path: Path, config: Config, plan: RunPlan, newest: Newest, named: Named, stopped: Stopped
) -> RunFolder:
    resume = config.checkpoint.resume
    # Before the folder is touched: a path that is wrong must leave everything as it was.
    configured = None if resume in ("auto", "never") else named(Path(resume))
    if not os.path.lexists(path):
        # Another start may be quicker, and hold the lock by now: hold_folder then says so.
        with suppress(FileExistsError):
            return _make(path, configured)
    # The lock comes before the folder is judged: another run may be writing its files.
    hold = hold_folder(path)
    try:
        restart = is_restart(path)
        if resume == "never" and not restart:
            return _make_instead(path, hold, None)
        # A restart of the job is past the checkpoint that its command names.
        is_own = _is_inside(configured, path) and not restart
        # The user has named a checkpoint of this folder: it may hold other mathematics.
        if not is_own:
            check_same(path, plan, restart)
        # The id comes from run.json: newest() passes over checkpoints that another run has left
        # here.
        run = run_of(path)
        checkpoint = configured if is_own else newest(path / "checkpoints", run)
        # It has begun and has no checkpoint: what becomes of its rows is for the user to say. A
        # restart of its own job moves the folder away, and begins again.
        if checkpoint is None and not restart and (path / "plan.json").exists():
            raise without_checkpoint(path)
        restarts = None
        if restart:
            # Under the lock: no other start takes the folder in the pause.
            restarts = pause(path, checkpoint, config.runtime.timeout_seconds, stopped)
        if checkpoint is None:
            folder = _make_instead(path, hold, configured)
        else:
            folder = _resume(path, hold, checkpoint, run, changes(path, plan))
    except BaseException:
        with suppress(OSError):
            hold.close()
        raise
    if restarts:
        folder.write_text(RESTARTS, restarts)
    else:  # a new job counts from 0
        remove(folder.path / RESTARTS)
    return folder


def _is_inside(checkpoint: Path | None, path: Path) -> bool:
    return checkpoint is not None and checkpoint.resolve().is_relative_to(path.resolve())


def _resume(
    path: Path, hold: Hold, checkpoint: Path, run: str | None, changed: tuple[str, ...]
) -> RunFolder:
    keep_hold(path, hold)
    folder = RunFolder(path, run=run, resumed_from=checkpoint, changed=changed)
    # It has no run.json: the id of its checkpoint is taken, so that checkpoint and folder agree.
    if run is None:  # of an earlier version
        folder.run = verify(checkpoint, contents=False).get("run") or new_id()
        folder.write_json(RUN, {"id": folder.run})
    # The run has not ended any more: a kill from here on must not read as its old end.
    remove(path / "ended.json")
    _sweep(path)
    return folder


def _sweep(path: Path) -> None:
    """Remove what a kill has left of files and folders that were being written or removed."""
    sweep(path / "checkpoints")
    for folder in (path, path / "final"):
        for pattern in (".*.unfinished", ".*.removed", "metrics.unfinished"):
            for left in folder.glob(pattern):
                remove(left)


def _make(path: Path, resumed_from: Path | None, moved_to: Path | None = None) -> RunFolder:
    run = new_id()
    keep_hold(path, make_folder(path, run))
    return RunFolder(path, run=run, moved_to=moved_to, resumed_from=resumed_from)


def _make_instead(path: Path, hold: Hold, resumed_from: Path | None) -> RunFolder:
    """A new folder; the one that is there is moved away."""
    moved_to = free_number(path)
    path.rename(moved_to)
    hold.close()  # only now: nobody else may take a folder that is about to move
    return _make(path, resumed_from, moved_to)


def cannot_write(path: Path, error: OSError) -> FolderRefused:
    why = error.strerror or error
    file = error.filename or path
    return FolderRefused(
        f"cannot write into {path}: {file}: {why}. Set: output_dir=ANOTHER. Or fix that, and run "
        "the same command again"
    )
