"""What an earlier start has left in the folder of a run: whether this start is the same run, and
how it differs.
"""

import os
from itertools import count
from pathlib import Path
from typing import Any

from train.config import differences
from train.disk import ENDED, ENVIRONMENT, PLAN, Shape, Unreadable, first_free, read_json
from train.errors import print_error
from train.plan.run_plan import RunPlan
from train.report.differing import lines, other_run
from train.report.folder import RUN
from train.report.folder_lock import FolderRefused, free_name
from train.report.restarts import job_id

LEFT_WITHOUT_PLAN = {
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
"""Fields of a plan's batch that are mathematics: the identity holds them too."""


class AlreadyFinished(RuntimeError):
    """This very run has been trained to its end."""


def run_of(path: Path) -> str | None:
    """The id of the run; None where an earlier version made the folder, or run.json is
    unreadable.
    """
    run: str | None = _read(path / RUN, {"id": str}).get("id")
    return run


def is_restart(path: Path) -> bool:
    """The same job, started again by its launcher or scheduler before it had finished."""
    # A finished job that runs again was started by a person: then it is a second start of the name.
    if _read(path / "ended.json", ENDED).get("reason") == "finished":
        return False
    may_restart = {
        "ISOBATCH_ATTEMPT": True,  # of one launch.sh
        "TORCHELASTIC_RUN_ID": os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0",
        "SLURM_JOB_ID": os.environ.get("SLURM_RESTART_COUNT", "0") != "0",
    }
    # By the id of the job, not by the command: a person may type the same command again.
    earlier_job = _read(path / "environment.json", ENVIRONMENT).get("job", {})
    for name, value in job_id().items():
        if may_restart[name] and earlier_job.get(name) == value:
            return True
    return False


def check_same(path: Path, plan: RunPlan, restart: bool) -> None:
    """Raises FolderRefused where the folder holds anything but this run, AlreadyFinished where that
    has finished.
    """
    # Both are read before anything is judged; a damaged ended.json counts as none.
    ended = _read(path / "ended.json", ENDED)
    try:
        # Not _read: a damaged plan.json must not pass for a folder without one, which may be taken
        # over.
        earlier = read_json(path / "plan.json", PLAN)
    except Unreadable as error:
        raise FolderRefused(
            f"{error}: it cannot be known what was trained there. Set one of:\n{_ways_out(path)}"
        ) from error
    except FileNotFoundError:
        # A restart of the job owns the folder, whatever its first start came to.
        if restart or _has_not_begun(path):
            return
        raise FolderRefused(
            f"{path} exists and is not a run folder. Set: name=ANOTHER, or output_dir=ANOTHER"
        ) from None
    differing = differences(earlier["identity"], plan.identity)
    # An earlier version wrote no digest of the data: nothing is known of it.
    if "data" not in earlier["identity"]:
        differing.pop("data", None)
    finished = ended.get("reason") == "finished"
    # A finished run may be trained for longer: its duration is no reason to refuse it.
    only_longer = all(key.startswith("duration.") for key in differing)
    if finished and only_longer and plan.total_steps > ended["step"]:
        return
    if differing:
        resume_all_the_same = f"\n  resume all the same:         checkpoint.resume={path}"
        raise FolderRefused(
            f"{path} holds {other_run(differing)}\nSet one of:\n{_ways_out(path)}"
            f"{resume_all_the_same}"
        )
    if finished:
        raise AlreadyFinished(
            f"{path} holds this very run, finished at step {ended['step']}. To train "
            f"again:\n{_ways_out(path)}"
        )


def _has_not_begun(path: Path) -> bool:
    """A start that was killed, or had no room on the disk, before it had written all its files:
    plan.json comes last.
    """
    # Names with a dot are the lock, and files that were being written.
    names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    return RUN in names or "environment.json" in names or names <= LEFT_WITHOUT_PLAN


def without_checkpoint(path: Path) -> FolderRefused:
    """The folder holds this run, which has begun, and nothing to resume from."""
    ended = _read(path / "ended.json", ENDED)
    state = "has not ended, or was killed"
    if ended:
        state = f"ended at step {ended['step']} ({ended['reason']})"
    return FolderRefused(
        f"{path} holds this very run, which {state} without a checkpoint. Set one "
        f"of:\n{_ways_out(path)}"
    )


def _ways_out(path: Path) -> str:
    return (
        f"  another name:                name={free_name(path)}\n"
        "  start over, keep the old one: checkpoint.resume=never   (moves it to "
        f"{free_number(path)})"
    )


def changes(path: Path, plan: RunPlan) -> tuple[str, ...]:
    """Lines on what differs from the last start of this run: mathematics, where the user insisted,
    and execution.
    """
    earlier = _read(path / "plan.json", PLAN)
    changed = differences(earlier.get("identity", {}), plan.identity)
    # The rest of the batch is execution: it may change without another curve, and is reported.
    batch = differences(earlier.get("batch", {}), plan.as_dict()["batch"])
    for key, pair in batch.items():
        if key not in IN_IDENTITY:
            changed[key] = pair
    # The data of training is part of the identity.
    data = differences(earlier.get("data", plan.data), plan.data)
    for split, pair in data.items():
        if split != plan.identity["data.split"]:
            changed[f"data of {split}"] = pair
    return tuple(lines(changed))


def _read(path: Path, shape: Shape) -> dict[str, Any]:
    """Empty where it is not there, or is damaged."""
    try:
        value: dict[str, Any] = read_json(path, shape)
    except FileNotFoundError:
        return {}
    except Unreadable as error:
        # Passed over by name, not in silence: the start goes on as if the file were not there.
        print_error(f"{error}; passed over")
        return {}
    return value


def free_number(path: Path) -> Path:
    """NAME.1, or the first number that is free."""
    return first_free(path.with_name(f"{path.name}.{number}") for number in count(1))
