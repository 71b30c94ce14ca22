"""Which checkpoint a run resumes from."""

from collections.abc import Callable, Collection
from pathlib import Path

from train.checkpoint.commit import candidates, set_aside
from train.checkpoint.files import MODEL, TENSORS, TRAINER
from train.checkpoint.manifest import Damaged, step_of, verify


class NoCheckpoint(RuntimeError):
    """There are checkpoints, or one was named, but none that can be trusted."""


NEEDED = (MODEL, TENSORS, TRAINER)


class Foreign(Damaged):
    """A checkpoint that another run has made."""


def newest(
    folder: Path, run: str | None, say: Callable[[str], None], needed: Collection[str] = NEEDED
) -> Path | None:
    """The newest checkpoint in `folder` whose every file is as it was written; None where there
    never was any.

    One of another run than that of the id `run` does not count; one without an id is of an earlier
    version, and does.

    One that is damaged is renamed, and `say` gets a line on it. Raises NoCheckpoint where all are,
    and leaves them unchanged: starting over without a word would throw a run away.
    """
    passed_over: dict[Path, Damaged] = {}
    # From the newest on. Contents are hashed here, so older ones are left alone once one is whole.
    for path in reversed(candidates(folder)):
        try:
            _verify_own(path, run, needed)
        except Damaged as error:
            passed_over[path] = error
            continue
        # Only now, with one at hand that can be trusted: where none is, none is renamed.
        for other, why in passed_over.items():
            aside = set_aside(other, "foreign" if isinstance(why, Foreign) else "damaged")
            say(f"checkpoint passed over: {why}; it is now {aside}")
        return path
    # Not None: that means that nothing was saved yet, and the caller would begin at step 0.
    if passed_over:
        first = next(iter(passed_over.values()))
        raise NoCheckpoint(
            f"all {len(passed_over)} checkpoints in {folder} are damaged, or of another run "
            f"({first}); nothing was started. Set: checkpoint.resume=never to start over (the run "
            "folder is kept under another name)"
        )
    return None


def _verify_own(path: Path, run: str | None, needed: Collection[str]) -> None:
    made_by = verify(path, needed=needed).get("run")
    if made_by is not None and run is not None and made_by != run:
        raise Foreign(
            f"{path} is of another run ({made_by}, not {run}). If it is the one you mean, set: "
            f"checkpoint.resume={path}"
        )


def named(path: Path, needed: Collection[str] = NEEDED) -> Path:
    """The checkpoint that the user named, or the newest of the run folder that was named. Never
    another one.

    Raises NoCheckpoint.
    """
    # The newest of a run folder, damaged or not: an older one in its place is not what was named.
    if (path / "checkpoints").is_dir():
        of_run = candidates(path / "checkpoints")
        path = of_run[-1] if of_run else path
    # step_of first: its message says what the name of a checkpoint looks like.
    try:
        step_of(path)
        verify(path, needed=needed)
    except Damaged as error:
        alternatives = ", ".join(map(str, candidates(path.parent)))
        there = f"{path.parent} holds no checkpoint"
        if alternatives:
            there = f"There is: {alternatives}"
        raise NoCheckpoint(f"checkpoint.resume={path}: {error}. {there}") from None
    return path


def abandon_newer(folder: Path, checkpoint: Path) -> None:
    """Set aside what was trained after `checkpoint`: a run that resumes there may differ."""
    for path in candidates(folder):
        if step_of(path) > step_of(checkpoint):
            set_aside(path, "abandoned")
