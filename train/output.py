"""A screen that goes away must not end what prints to it: a closed terminal, a `| tee log` that
Ctrl-C has ended.

Imports nothing of the package: every entry point begins here.
"""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""The reader of a pipe has ended, the terminal was closed: nobody will ever read it."""


def keep_printing() -> None:
    """From now on no write to stdout or stderr raises. metrics.jsonl and log.txt are the record of
    a run.

    Only the interpreter's own streams: a test, or a notebook, that put its own in their place keeps
    it.
    """
    # By identity: what is not the interpreter's own was put there on purpose.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _kept(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _kept(sys.stderr)


class _Forgiving(io.FileIO):
    """A file that drops what cannot be written, and leads nowhere once its reader is gone."""

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            # Other errors may pass, such as a full disk behind a log: later text may get through.
            if error.errno in _GONE:
                _lead_nowhere(self.fileno())
            # As if all of it were written: BufferedWriter would else keep the rest, and try it
            # again.
            return memoryview(text).nbytes


def _lead_nowhere(descriptor: int) -> None:
    """The descriptor itself: what C code and child processes print goes the same way."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _kept(stream: TextIO | None) -> Any:
    if stream is None:
        return None
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # there was none when the interpreter began
        return stream
    # What the old stream still holds comes first.
    with suppress(OSError):
        stream.flush()
    # closefd=False: the descriptor stays the process's own, also when this object is collected.
    return io.TextIOWrapper(
        io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )
