"""Which checkpoint a run goes on from."""

from collections.abc import Callable
from pathlib import Path

from train.checkpoint.commit import candidates, set_aside
from train.checkpoint.manifest import Damaged, step_of, verify


class NoCheckpoint(RuntimeError):
    """There are checkpoints, or one was named, but none that can be trusted."""


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint in `folder` whose every file is as it was written; None where there never was any.

    One that is damaged is passed over, said, and renamed. Raises NoCheckpoint where all are, and leaves them as they
    are: starting over without a word would throw a run away.
    """
    damaged: dict[Path, Damaged] = {}
    for path in reversed(candidates(folder)):
        try:
            verify(path)
        except Damaged as error:
            damaged[path] = error
            continue
        for other, why in damaged.items():
            say(f"checkpoint passed over: {why}; it is now {set_aside(other, 'damaged')}")
        return path
    if damaged:
        raise NoCheckpoint(
            f"all {len(damaged)} checkpoints in {folder} are damaged ({next(iter(damaged.values()))}); nothing was "
            f"started. Type checkpoint.resume=never to start over (the run folder is kept under another name)"
        )
    return None


def named(path: Path) -> Path:
    """The checkpoint that the user named, or the newest of the run folder that was named. Never another one.

    Raises NoCheckpoint.
    """
    if (path / "checkpoints").is_dir():
        of_run = candidates(path / "checkpoints")
        path = of_run[-1] if of_run else path
    try:
        step_of(path)
        verify(path)
    except Damaged as error:
        near = [str(other) for other in candidates(path.parent)]
        there = f"There is: {', '.join(near)}" if near else f"{path.parent} holds no checkpoint"
        raise NoCheckpoint(f"checkpoint.resume={path}: {error}. {there}") from None
    return path


def abandon_newer(folder: Path, chosen: Path) -> None:
    """What was trained after `chosen`, from which the run goes on now: it must not be taken for its future."""
    for path in candidates(folder):
        if step_of(path) > step_of(chosen):
            set_aside(path, "abandoned")
