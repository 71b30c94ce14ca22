"""The lock of a run folder: one process trains into it at a time.

A folder may be moved, deleted, or replaced by that of another run of the same name while a run
writes into it. So the lock is held open, and before anything is written by path it is checked
whether the file of that name is still the one that is locked.
"""

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from train.disk import first_free, numbered, open_own
from train.errors import UserError

LOCK = ".lock"


class FolderRefused(UserError):
    """A run of this name is there, and continuing would lose it; the message holds the lines to
    paste.
    """


@dataclass
class Hold:
    """What keeps others out of a folder: open files, which the system closes when the process
    ends.
    """

    lock: int
    folder: int
    """Open too: while it is, no other folder can get its inode."""

    def close(self) -> None:
        os.close(self.lock)
        os.close(self.folder)

    def is_at(self, path: Path) -> bool:
        """Whether the folder of this path is still the one that is held."""
        try:
            # lstat: a link of that name is not the file that is locked.
            there = (path / LOCK).lstat()
        except OSError as error:
            # Where the lock file alone is gone, the folder itself decides.
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return self._lock_again(path)
            if error.errno == errno.ESTALE:  # NFS: the file was removed on another machine
                return False
            raise
        return os.path.samestat(there, os.fstat(self.lock))

    def _lock_again(self, path: Path) -> bool:
        """The lock file alone was removed: it is made again, unless another run was quicker."""
        try:
            if not os.path.samestat(path.stat(), os.fstat(self.folder)):
                return False
            lock = lock_folder(path)
        except (OSError, FolderRefused):
            return False
        os.close(self.lock)
        self.lock = lock
        return True


def hold_folder(path: Path) -> Hold:
    """Raises FolderRefused where another process holds it."""
    lock = lock_folder(path)
    return Hold(lock, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def lock_folder(path: Path) -> int:
    """The open lock. Raises FolderRefused where another process has it."""
    # flock belongs to the open file: it goes with the process, however that ends.
    lock = open_own(path / LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever removes the file does so under its lock: what is locked may be no file any more.
        there = (path / LOCK).lstat()
        if not os.path.samestat(there, os.fstat(lock)):
            raise FileNotFoundError
        # Emptied under the lock only: the name of a living owner must stay there for others to
        # read.
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError:
        owner = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise FolderRefused(
            f"{path} is being trained into by {owner}. Set: name={free_name(path)}"
        ) from None
    except FileNotFoundError:
        # Its run ended between opening and locking, and removed the file.
        os.close(lock)
        return lock_folder(path)
    except BaseException:
        os.close(lock)
        raise
    return lock


def free_name(path: Path) -> str:
    """For another run: the name with a number behind it."""
    return first_free(numbered(path)).name
