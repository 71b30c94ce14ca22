"""The run folder OUTPUT_DIR/NAME while a run writes into it."""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from train.disk import free_path, open_own, write_atomically
from train.errors import FAILED, RunFailed, ending
from train.redaction import clean, clean_known
from train.report.folder_lock import (
    LOCK,
    FolderRefused,
    Hold,
    free_name,
    hold_folder,
    lock_folder,
)

RUN = "run.json"
ATTEMPTS = 10
"""Of making a folder."""
COPIED_BYTES = 2**20
"""At once, of a file that is copied."""


class Displaced(RunFailed, OSError):
    """The run folder was moved or deleted under the run; what has its name now is not ours."""


_HOLDS: dict[Path, Hold] = {}
"""Of the folders that this process trains into."""


def _leave_locks_to_parent() -> None:
    """A data worker is forked from its rank and may outlive it, for ever where it hangs: its copy
    of the lock would keep the next start out.
    """
    for hold in _HOLDS.values():
        hold.close()
    _HOLDS.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def keep_hold(path: Path, hold: Hold) -> None:
    """From now on this process trains into the folder."""
    _HOLDS[path] = hold


@dataclass
class RunFolder:
    path: Path
    run: str | None = None
    """The id of the run: its checkpoints bear it."""
    moved_to: Path | None = None
    """Where an older run of the name is now."""
    resumed_from: Path | None = None
    """The checkpoint that the run resumes from."""
    changed: tuple[str, ...] = ()
    """Lines on what differs from when that checkpoint was written."""
    _texts: dict[str, str] = field(default_factory=dict, repr=False)
    """By name, files that are written at once."""
    _appended: dict[str, IO[Any]] = field(default_factory=dict, repr=False)
    """By name, open files that are appended to."""

    def is_held(self) -> bool:
        """Whether the folder at its path is still this one. Ranks that hold no lock cannot know,
        and assume it.
        """
        hold = _HOLDS.get(self.path)
        return hold is None or hold.is_at(self.path)

    def inside(self, name: str = "") -> Path:
        """The path of something in it that is to be written now. Raises Displaced."""
        # By path, a write would go into whatever folder has the name now.
        if not self.is_held():
            raise Displaced(f"{self.path} was moved or deleted, or is another run's by now")
        return self.path / name

    def release(self) -> None:
        """The run has ended: others may have the folder."""
        hold = _HOLDS.pop(self.path, None)
        # Removed under its lock: a start that has the file open by then looks again (lock_folder).
        if hold:
            with suppress(OSError):
                # Not the lock of another run, which has the name by now.
                if hold.is_at(self.path):
                    (self.path / LOCK).unlink(missing_ok=True)
            hold.close()

    def end_early(self, reason: str, step: int = 0, code: int = FAILED) -> None:
        """Write the end of a run that failed where it had no Reporter, or none that answers."""
        with suppress(OSError):  # a full disk must not hide why
            self.write_json("ended.json", ending(reason, code, step))
        self.release()

    def write_text(self, name: str, text: str) -> None:
        """All of it or nothing, whenever a kill comes. Raises OSError, Displaced included."""
        # Known secrets only: a text of ours, such as config.yaml, has been redacted by name before.
        cleaned = clean_known(text)
        write_atomically(self.inside(name), cleaned.encode(errors="backslashreplace"))
        self._texts[name] = cleaned

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        # `default`: a value that JSON cannot hold is written as its text.
        text = json.dumps(clean(value), indent=2, default=lambda item: clean(str(item)))
        self.write_text(name, text + "\n")

    def follow(self, name: str, file: IO[Any]) -> None:
        """A file in it that is appended to: it moves where the folder does."""
        self._appended[name] = file

    def move_beside(self) -> Path:
        """From now on in a new folder beside it, with all that this run has written so far but
        weights.
        """
        # Not NAME.1, which is what checkpoint.resume=never makes: the name says what happened.
        now = time.strftime("%H%M%S")
        beside = free_path(self.path.with_name(f"{self.path.name}.displaced-{now}"))
        hold = make_folder(beside, self.run)
        # The new folder is locked before the old lock is closed: the run is in one of them at any
        # moment.
        _HOLDS.pop(self.path).close()
        _HOLDS[beside] = hold
        self.path = beside
        # What was written is in memory: the old folder may be gone, or another run's.
        for name, text in self._texts.items():
            self.write_text(name, text)
        for name, file in self._appended.items():
            if not file.closed:
                _continue_in(beside / name, file.fileno())
        return beside


def _continue_in(path: Path, descriptor: int) -> None:
    """Make an open file a copy of itself at `path`; its old folder may be gone."""
    copy = open_own(path, fresh=True)
    # By offset: the position of the open file stays where it is.
    position = 0
    while piece := os.pread(descriptor, COPIED_BYTES, position):
        position += len(piece)
        # os.write may write less than it was given, as on a disk that is nearly full.
        while piece:
            written = os.write(copy, piece)
            piece = piece[written:]
    # The same descriptor, which the journal and the log hold: they continue without a word.
    os.dup2(copy, descriptor, inheritable=False)
    os.close(copy)


def make_folder(path: Path, run: str | None) -> Hold:
    """A new run folder, locked, by one rename: a kill leaves all of it or nothing.

    Raises FileExistsError where one is there, FolderRefused where other starts keep coming first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_starts(path)
    for _ in range(ATTEMPTS):
        # Beside the final name, so that the rename stays within one file system.
        starting = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")
        starting.mkdir()
        try:
            hold = hold_folder(starting)
        except (FolderRefused, FileNotFoundError):
            continue  # another start took it for what a kill has left
        except BaseException:
            shutil.rmtree(starting, ignore_errors=True)
            raise
        try:
            write_atomically(starting / RUN, json.dumps({"id": run or new_id()}).encode())
            starting.rename(path)
        except BaseException as error:
            shutil.rmtree(starting, ignore_errors=True)
            hold.close()
            # A rename onto a folder that is empty succeeds; onto one with files it fails
            # (rename(2)).
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, "it is there by now", str(path)) from None
            raise
        return hold
    raise FolderRefused(
        f"{path} could not be made: others keep starting it. Set: name={free_name(path)}"
    )


def _sweep_starts(path: Path) -> None:
    """Remove what killed starts of this name have left; that of a living one is locked."""
    starts = [other for other in path.parent.iterdir() if other.name.startswith(_prefix(path))]
    for left in starts:
        with suppress(OSError, FolderRefused):
            # Only one that is dead can be locked.
            lock = lock_folder(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _prefix(path: Path) -> str:
    return f".{path.name}.starting-"


def new_id() -> str:
    return secrets.token_hex(8)
