"""The run folder OUTPUT_DIR/NAME while a run writes into it: whose it is, and what is written by
path.

A folder may be moved, deleted, or replaced by that of another run of the same name while a run goes
on. So the lock is held open, and before anything is written by path it is looked at whether the
file of that name is still this one.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from train.disk import first_free, open_own, write_whole
from train.errors import FAILED, RunFailed, UserError, ending
from train.redaction import clean, clean_known

LOCK, RUN = ".lock", "run.json"
ATTEMPTS = 10


class FolderRefused(UserError):
    """A run of this name is there, and going on would lose it; the message holds the lines to
    paste.
    """


class Displaced(RunFailed, OSError):
    """The run folder was moved or deleted under the run; what has its name now is another's."""


@dataclass
class Hold:
    """What keeps others out of a folder: open files, of which the system lets go when the process
    ends.
    """

    lock: int
    folder: int  # open too: while it is, no other folder can get its inode

    def close(self) -> None:
        os.close(self.lock)
        os.close(self.folder)

    def is_at(self, path: Path) -> bool:
        """Whether the folder of this path is still the one that is held."""
        try:
            there = (path / LOCK).lstat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return self._lock_again(path)
            if error.errno == errno.ESTALE:
                return False
            raise
        return os.path.samestat(there, os.fstat(self.lock))

    def _lock_again(self, path: Path) -> bool:
        """Somebody has removed the lock alone: it is made again, unless another run was quicker."""
        try:
            if not os.path.samestat(path.stat(), os.fstat(self.folder)):
                return False
            lock = lock_folder(path)
        except (OSError, FolderRefused):
            return False
        os.close(self.lock)
        self.lock = lock
        return True


_HOLDS: dict[Path, Hold] = {}
"""Of the folders that this process trains into."""


def _leave_locks_to_parent() -> None:
    """A data worker is forked from its rank and may outlive it: for a moment, or for ever where it
    is stuck.
    """
    for hold in _HOLDS.values():
        hold.close()
    _HOLDS.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@dataclass
class RunFolder:
    path: Path
    run: str | None = None  # the id of the run: its checkpoints bear it
    moved_to: Path | None = None  # where an older run of the name is now
    resumed_from: Path | None = None  # the checkpoint that the run goes on from
    changed: tuple[str, ...] = ()  # lines: what is not as it was when that was written
    # whole files that were written
    _texts: dict[str, str] = field(default_factory=dict, repr=False)
    # those that are appended to
    _open: dict[str, IO[Any]] = field(default_factory=dict, repr=False)

    def is_held(self) -> bool:
        """Whether what has its path is still this folder; ranks that hold no lock cannot know, and
        take it for so.
        """
        hold = _HOLDS.get(self.path)
        return hold is None or hold.is_at(self.path)

    def inside(self, name: str = "") -> Path:
        """The path of something in it that is to be written now. Raises Displaced."""
        if not self.is_held():
            raise Displaced(f"{self.path} was moved or deleted, or is another run's by now")
        return self.path / name

    def release(self) -> None:
        """The run has ended: others may have the folder."""
        hold = _HOLDS.pop(self.path, None)
        if hold:
            with suppress(OSError):
                if hold.is_at(self.path):
                    (self.path / LOCK).unlink(missing_ok=True)
            hold.close()

    def end_early(self, reason: str, step: int = 0, code: int = FAILED) -> None:
        """The run failed where there was nobody to tell it."""
        with suppress(OSError):  # a full disk must not hide why
            self.write_json("ended.json", ending(reason, code, step))
        self.release()

    def write_text(self, name: str, text: str) -> None:
        """All of it or nothing, whenever a kill comes. Raises OSError, Displaced included."""
        cleaned = clean_known(text)
        write_whole(self.inside(name), cleaned.encode(errors="backslashreplace"))
        self._texts[name] = cleaned

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(
            name, json.dumps(clean(value), indent=2, default=lambda item: clean(str(item))) + "\n"
        )

    def follow(self, name: str, file: IO[Any]) -> None:
        """A file in it that is appended to: it moves where the folder does."""
        self._open[name] = file

    def move_beside(self) -> Path:
        """From now on in a new folder beside it, with all that this run has written so far but
        weights.
        """
        beside = free(self.path.with_name(f"{self.path.name}.displaced-{time.strftime('%H%M%S')}"))
        hold = make_folder(beside, self.run)
        _HOLDS.pop(self.path).close()
        _HOLDS[beside] = hold
        self.path = beside
        for name, text in self._texts.items():
            self.write_text(name, text)
        for name, file in self._open.items():
            if not file.closed:
                _continue_in(beside / name, file.fileno())
        return beside


def _continue_in(path: Path, number: int) -> None:
    """An open file goes on as another one, which holds the same so far; its folder may be gone."""
    new = open_own(path, fresh=True)
    place = 0
    while piece := os.pread(number, 2**20, place):
        place += len(piece)
        while piece:
            piece = piece[os.write(new, piece) :]
    os.dup2(new, number, inheritable=False)
    os.close(new)


def hold_folder(path: Path) -> Hold:
    """Raises FolderRefused where another process has it."""
    lock = lock_folder(path)
    return Hold(lock, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def take(path: Path, hold: Hold) -> None:
    """From now on this process trains into it."""
    _HOLDS[path] = hold


def lock_folder(path: Path) -> int:
    """The open lock. Raises FolderRefused where another process has it."""
    lock = open_own(path / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = (path / LOCK).lstat()
        if not os.path.samestat(there, os.fstat(lock)):
            raise FileNotFoundError
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError:
        owner = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise FolderRefused(
            f"{path} is being trained into by {owner}. Type: name={free_name(path)}"
        ) from None
    # it was let go of, and removed, in the moment between opening and locking it
    except FileNotFoundError:
        os.close(lock)
        return lock_folder(path)
    except BaseException:
        os.close(lock)
        raise
    return lock


def make_folder(path: Path, run: str | None) -> Hold:
    """A new run folder, locked, at once: a kill leaves all of it or none. Raises FileExistsError
    where one is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_starts(path)
    for _ in range(ATTEMPTS):
        starting = path.with_name(f".{path.name}.starting-{secrets.token_hex(4)}")
        starting.mkdir()
        try:
            hold = hold_folder(starting)
        except (FolderRefused, FileNotFoundError):
            continue  # another start took it for what a kill has left
        except BaseException:
            shutil.rmtree(starting, ignore_errors=True)
            raise
        try:
            write_whole(starting / RUN, json.dumps({"id": run or new_id()}).encode())
            starting.rename(path)
        except BaseException as error:
            shutil.rmtree(starting, ignore_errors=True)
            hold.close()
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, "it is there by now", str(path)) from None
            raise
        return hold
    raise FolderRefused(
        f"{path} could not be made: others keep starting it. Type: name={free_name(path)}"
    )


def _sweep_starts(path: Path) -> None:
    """What starts of this name have left that were killed."""
    mark = f".{path.name}.starting-"
    for left in [each for each in path.parent.iterdir() if each.name.startswith(mark)]:
        with suppress(OSError, FolderRefused):
            lock = lock_folder(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def new_id() -> str:
    return secrets.token_hex(8)


def free(path: Path) -> Path:
    """The path, or with a number behind it, where nothing is yet."""
    return first_free(chain([path], _numbered(path)))


def free_name(path: Path) -> str:
    return first_free(_numbered(path)).name


def _numbered(path: Path) -> Iterator[Path]:
    return (path.with_name(f"{path.name}-{number}") for number in count(2))
