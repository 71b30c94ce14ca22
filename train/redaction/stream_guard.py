"""Guards stdout and stderr of this process: no secret passes them, whoever writes there.

The streams stay the objects that they are, since handlers of loggers hold them from the moment that
a library was imported: only their `write` is replaced. A forked data worker inherits that. What C
code writes to the descriptors passes it by.
"""

import contextlib
import os
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from train.redaction.clean import clean_text
from train.redaction.shapes import KEY_BEGINS, KEY_ENDS, REDACTED

LONGEST_LINE = 100_000
"""Characters that wait for the end of their line."""
MOST_LINES_OF_KEY = 200
LONGEST_NAME = 200
_ENDS_WITH_NAME = re.compile(
    r"(?i)(?:pass\w*|token|secret|key|pwd|auth\w*|credentials?)[\"'`]?(?: is)?"
    r"[ \t]*[:=][ \t]*"
    r"[|>]?[+\-\d]?"  # the mark of a YAML text: password: |
    r"\n\Z"
)
"""`password:`, whose value comes with the next line."""

_GUARDS: "weakref.WeakSet[StreamGuard]" = weakref.WeakSet()


def _renew_locks() -> None:
    for guard in list(_GUARDS):
        guard.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)


class StreamGuard:
    """In front of a text stream: passes whole lines on, each without its secrets."""

    def __init__(self, stream: Any) -> None:
        self.stream: Any = stream
        self._write = stream.write
        self._flush = stream.flush
        self._raw: Any = _attribute(stream, "buffer")
        self._write_raw: Any = _attribute(self._raw, "write")
        # The end of a text, until its line is complete.
        self._waiting = ""
        # Between the lines of a private key.
        self._in_key = False
        self._lines_of_key = 0
        # On in a thread that writes what is clean already.
        self._passing = threading.local()
        self.renew_lock()
        stream.write = self.write
        stream.flush = self.flush
        stream.isobatch_guard = self
        if self._write_raw is not None:
            # A stream of bytes that refuses it is one that somebody else has put there.
            with contextlib.suppress(AttributeError):
                self._raw.write = self.write_raw
        _GUARDS.add(self)

    def renew_lock(self) -> None:
        """In a child of fork, another thread may have held the lock."""
        self._lock = threading.RLock()

    def remove(self) -> None:
        # It may be closed.
        with contextlib.suppress(ValueError, OSError):
            self.flush()
        for name in ("write", "flush", "isobatch_guard"):
            with contextlib.suppress(AttributeError):
                delattr(self.stream, name)
        with contextlib.suppress(AttributeError):
            del self._raw.write

    def write(self, text: Any) -> int:
        if not isinstance(text, str):
            # It raises the usual error.
            return int(self._write(text))
        with self._lock:
            waiting = self._waiting + text
            # A progress bar ends its lines with a carriage return.
            end = max(waiting.rfind("\n"), waiting.rfind("\r")) + 1
            name = _ENDS_WITH_NAME.search(waiting, max(0, end - LONGEST_NAME), end)
            if name is not None:
                end = waiting.rfind("\n", 0, name.start()) + 1
            if len(waiting) - end > LONGEST_LINE:
                end = len(waiting)
            self._waiting = waiting[end:]
            if end:
                self._pass_on(waiting[:end])
        return len(text)

    def flush(self) -> None:
        with self._lock:
            waiting = self._waiting
            self._waiting = ""
            if waiting:
                self._pass_on(waiting)
            with self._passes():
                self._flush()

    def write_raw(self, data: Any) -> int:
        """Bytes: those of the text stream itself, or what somebody writes past it."""
        assert self._write_raw is not None
        if getattr(self._passing, "on", False):
            return int(self._write_raw(data))
        content = bytes(data)
        cleaned = clean_text(content.decode("utf-8", errors="surrogateescape"))
        self._write_raw(cleaned.encode("utf-8", "surrogateescape"))
        return len(content)

    @contextlib.contextmanager
    def _passes(self) -> Iterator[None]:
        before = getattr(self._passing, "on", False)
        self._passing.on = True
        try:
            yield
        finally:
            self._passing.on = before

    def _pass_on(self, text: str) -> None:
        cleaned = clean_text(self._without_key(text))
        with self._passes():
            self._write(cleaned)

    def _without_key(self, text: str) -> str:
        """The text without a private key that is written line by line."""
        if self._in_key:
            end = KEY_ENDS.search(text)
            self._lines_of_key += text.count("\n")
            if end is None and self._lines_of_key < MOST_LINES_OF_KEY:
                return ""
            self._in_key = False
            if end is not None:
                text = text[end.end() :]
        begin = KEY_BEGINS.search(text)
        if begin is not None and not KEY_ENDS.search(text, begin.end()):
            self._in_key = True
            self._lines_of_key = 0
            return f"{text[: begin.start()]}{REDACTED}\n"
        return text


def _attribute(owner: object, name: str) -> Any:
    return getattr(owner, name, None)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An uncaught error, in one piece: what it holds may go over several lines."""
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))
    sys.stderr.flush()


def guard_streams() -> None:
    """Put guards in front of stdout and stderr, once, and print uncaught errors in one piece."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not hasattr(stream, "isobatch_guard"):
            StreamGuard(stream)
    if sys.excepthook is not _show:
        sys.excepthook = _show


def release_streams() -> None:
    """As before guard_streams."""
    for guard in list(_GUARDS):
        guard.remove()
    _GUARDS.clear()
    if sys.excepthook is _show:
        sys.excepthook = sys.__excepthook__
