"""How text reaches a terminal or a log: in complete lines, each message in one write, without
anything that moves a cursor.

Imports nothing of the package: errors are printed through here too.
"""

import os
import sys
from contextlib import suppress
from typing import TextIO

LONGEST_LINE = 2_000
"""Characters."""
MOST_LINES = 200
"""Of one message. A longer one (the repr of a tensor in an exception) would push all else off the
screen.
"""
LENGTH_NOTE = 40
"""Characters kept for `... (1,234,567 characters)`."""
CLEAR_LINE = "\r\x1b[K"
"""Back to the start of the line, and erase it."""


def on_one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """`text` as one line of at most `longest` characters; what does not print is escaped as in
    Python: \\x1b, \\n.

    Bytes are read as UTF-8, other objects as str() gives them.
    """
    if isinstance(text, bytes):
        full = text.decode(errors="backslashreplace")
    else:
        full = str(text)
    # Cut before it is escaped, which takes time for a text of megabytes; one more tells whether it
    # was cut.
    escaped = _escaped(full[: longest + 1])
    # Escaping makes a text longer: it may fit before, and not after.
    if len(full) <= longest and len(escaped) <= longest:
        return escaped
    start = escaped[: max(0, longest - LENGTH_NOTE)]
    return f"{start} ... ({len(full):,} characters)"


def on_lines(text: object) -> str:
    """As on_one_line, but a message keeps its lines, up to MOST_LINES of them."""
    # Windows' line ends are one break, and no \r that would be escaped.
    lines = str(text).replace("\r\n", "\n").split("\n")
    shown = [on_one_line(line.expandtabs(4)) for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        shown.append(f"... ({len(lines) - MOST_LINES:,} more lines)")
    return "\n".join(shown)


def write_lines(text: str, stream: TextIO | None = None) -> None:
    """Print `text` and a newline in one write, to stderr by default.

    Two processes that print at the same time then do not share a line; on a terminal, the live line
    of another one is cleared before. A terminal that is closed, a pipe without a reader, or an
    encoding that lacks a letter raises nothing: none of them is a reason to end a training.
    """
    stream = stream or sys.stderr
    if stream is None:  # a process without a console, such as under pythonw
        return
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        # A live line of another process has no newline at its end: without this the message is put
        # behind it.
        start = CLEAR_LINE if _may_show_live_line(stream) else ""
        # One write for text and newline: two would let another process come between.
        stream.write(encodable(f"{start}{text}\n", stream))
        stream.flush()


def moves_cursor(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can go back in a line, and erase it."""
    # Without TERM nothing is known of the cursor.
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _may_show_live_line(stream: TextIO) -> bool:
    """Whether the last line may be another process's live line; this one's own is handled by
    rich.
    """
    return moves_cursor(stream) and not hasattr(stream, "rich_proxied_file")


def encodable(text: str, stream: TextIO) -> str:
    """`text` with what the stream's encoding lacks escaped: under LANG=C, that is all but ASCII."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # An encoding that Python does not know leaves the text as it is.
    with suppress(LookupError):
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(map(_escaped_character, text))


def _escaped_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
