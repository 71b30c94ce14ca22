"""The commit protocol: at any moment, a kill leaves every complete checkpoint as it was, and never
half of one.

Everything is written into a folder of another name and brought to disk, the manifest last; one
rename makes it a checkpoint; only then are older ones removed, and those are renamed before they
are deleted. What is left of an interrupted save has a name that begins with a dot, and the next
save sweeps it away.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from train.checkpoint.manifest import (
    MANIFEST,
    NAME,
    Damaged,
    entry,
    name_of,
    render,
    step_of,
    verify,
)
from train.disk import free_path, remove
from train.distributed.ranks import Ranks
from train.errors import RunFailed

Write = Callable[[Path], Sequence[str]]
"""Puts this rank's own files into a folder; returns their names."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written; the ones before it are as they were."""


def commit(
    folder: Path,
    step: int,
    keep: int,
    ranks: Ranks,
    write: Write,
    also_keep: Path | None,
    run: str | None = None,
) -> None:
    """Make the checkpoint of `step` in `folder`, for the run of the id `run`.

    The newest `keep` stay, and `also_keep`. Raises SaveFailed, on all ranks, where it fails on one.
    """
    final = folder / name_of(step)
    unfinished = folder / f".{name_of(step)}.unfinished"
    # Saved already where training stopped: it is never removed to be written again.
    if ranks.from_main(lambda: _is_complete(final)):
        return
    try:
        ranks.from_main(lambda: _begin(folder, unfinished))
        # Each rank writes, syncs and hashes its own files. `together` makes all ranks raise what
        # one raised: none may go on to the manifest where the files of another are missing.
        entries = ranks.together(lambda: _written(unfinished, write))
        # Each rank has hashed what it wrote: rank 0 reads no file of another one.
        files = {}
        for entries_of_rank in ranks.gather(entries):
            files.update(entries_of_rank)
        # The world size is kept, since a resume on as many ranks gives each rank its own buffers
        # again.
        manifest = render(step, ranks.world_size, files, run)
        ranks.from_main(lambda: _finish(unfinished, final, manifest))
    except Exception as error:
        # Rank 0 alone removes it: all ranks write into one folder.
        if ranks.is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
        others = ", ".join(path.name for path in complete(folder)) or "none"
        raise SaveFailed(
            f"could not save {final}: {error}. Complete checkpoints there: {others}. "
            "Run the same command again once that is fixed; it resumes from the newest"
        ) from error
    # Apart from the above: the new checkpoint is complete by now, and the message must not say that
    # it could not be saved.
    try:
        ranks.from_main(lambda: rotate(folder, keep, also_keep))
    except Exception as error:
        raise SaveFailed(
            f"{final} is complete, but an older checkpoint could not be removed: {error}"
        ) from error


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first. Sizes are checked, contents are not."""
    return [path for path in candidates(folder) if _is_complete(path)]


def candidates(folder: Path) -> list[Path]:
    """Everything that has the name of a checkpoint and is a folder with something in it, oldest
    first.
    """
    if not folder.is_dir():
        return []
    paths = []
    # By name, not by manifest: the caller decides what a damaged one means. A link is none of ours,
    # and an empty folder holds nothing to lose.
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if NAME.fullmatch(path.name) and is_folder and any(path.iterdir()):
            paths.append(path)
    return sorted(paths, key=step_of)


def rotate(folder: Path, keep: int, also_keep: Path | None) -> None:
    """Remove all complete checkpoints but the newest `keep` and `also_keep`."""
    # Only complete ones are counted and removed: a damaged one must not take the place of one that
    # can be resumed from.
    for path in complete(folder)[:-keep]:
        if path != also_keep:
            # Renamed first: a kill while files are deleted leaves nothing that looks complete.
            gone = path.with_name(f".{path.name}.removed")
            path.rename(gone)
            shutil.rmtree(gone)


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint so that it no longer counts as one; nothing is deleted."""
    # A number is added where the name is taken: what was set aside earlier is never overwritten.
    return path.rename(free_path(path.with_name(f"{path.name}.{why}")))


def _begin(folder: Path, unfinished: Path) -> None:
    folder.mkdir(exist_ok=True)
    # What is left may have the name of this save: mkdir below would fail on it.
    sweep(folder)
    unfinished.mkdir()


def sweep(folder: Path) -> None:
    """Remove what a save or a rotation that was interrupted has left."""
    for left in folder.glob(".step-*"):
        remove(left)


def _written(unfinished: Path, write: Write) -> dict[str, dict[str, object]]:
    """Write this rank's files to disk; gives their entries of the manifest."""
    entries = {}
    for name in write(unfinished):
        # On disk before its hash is in a manifest, so that no manifest names bytes that are only in
        # the page cache.
        sync(unfinished / name)
        entries[name] = entry(unfinished / name)
    return entries


def _finish(unfinished: Path, final: Path, manifest: bytes) -> None:
    # All other files are on disk by now: a manifest names nothing that a power cut could take.
    (unfinished / MANIFEST).write_bytes(manifest)
    sync(unfinished / MANIFEST)
    # The folder too: fsync of a file does not bring its name to disk (fsync(2)).
    sync(unfinished)
    # A complete one would not be written again: what is there is no checkpoint, or is damaged.
    if os.path.lexists(final):
        set_aside(final, "replaced")
    unfinished.rename(final)
    sync(final.parent)  # the rename itself


def _is_complete(path: Path) -> bool:
    try:
        # Sizes only: this runs for each older checkpoint at each save, which would else read all of
        # them.
        verify(path, contents=False)
    except Damaged:
        return False
    return True


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    # Read only is enough for fsync, and the only way to open a folder.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
