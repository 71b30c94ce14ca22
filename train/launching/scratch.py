"""The folder into which ranks write how they ended, for the one launch that reads it."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PREFIX = "isobatch."
NEW_SECONDS = 60.0
"""A folder of this age has been locked, where its launch still runs."""


class Scratch:
    """Locked by its launch: a folder whose lock is free was left by a launch that was killed."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # The system frees the lock with this process, however it ends.
        self._descriptor = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def sweep() -> None:
    """Remove what launches of this user left that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_behind(folder: Path) -> bool:
    status = folder.lstat()
    # A new folder may be of a launch that has not locked it yet. The folder of temporary files is
    # everybody's: a link, or what another user has made, is left alone.
    is_old = time.time() - status.st_mtime > NEW_SECONDS
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or not is_old:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
