"""How words reach a terminal or a log: whole lines, each message in one write, nothing that moves a
cursor.

Imports nothing of the package: errors are printed through here too.
"""

import os
import sys
from contextlib import suppress
from typing import TextIO

LONGEST_LINE = 2_000
MOST_LINES = 200
"""Of one message. What is longer (the repr of a tensor in somebody's exception) would push all else
off the screen.
"""


FRESH_LINE = "\r\x1b[K"


def on_one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """`text` as one line of at most `longest` characters; what does not print is escaped as in
    Python: \\x1b, \\n.

    Bytes are read as UTF-8, other objects as str() gives them.
    """
    whole = text.decode(errors="backslashreplace") if isinstance(text, bytes) else str(text)
    shown = _escaped(whole[: longest + 1])
    if len(whole) <= longest and len(shown) <= longest:
        return shown
    kept = shown[: max(0, longest - 40)]
    return f"{kept} ... ({len(whole):,} characters)"


def on_lines(text: object) -> str:
    """As on_one_line, but a message keeps its lines, up to MOST_LINES of them."""
    lines = str(text).replace("\r\n", "\n").split("\n")
    shown = [on_one_line(line.expandtabs(4)) for line in lines[:MOST_LINES]]
    if len(lines) > MOST_LINES:
        shown.append(f"... ({len(lines) - MOST_LINES:,} more lines)")
    return "\n".join(shown)


def write_lines(text: str, stream: TextIO | None = None) -> None:
    """Print `text` and the end of its last line, to stderr unless said otherwise, in one write.

    Two processes that print at the same time then do not share a line; on a terminal, the live line
    of another one is cleared before. A terminal that is closed, a pipe without a reader, or an
    encoding that lacks a letter raises nothing: none of them is a reason to end a training.
    """
    stream = stream or sys.stderr
    if stream is None:  # a process without a console, such as under pythonw
        return
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        start = FRESH_LINE if _may_hold_a_line(stream) else ""
        stream.write(encodable(f"{start}{text}\n", stream))
        stream.flush()


def moves_cursor(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that understands how to go back in a line, and to clear it."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _may_hold_a_line(stream: TextIO) -> bool:
    """Whether something of another process may stand in the last line; what this one shows there,
    rich puts aside.
    """
    return moves_cursor(stream) and not hasattr(stream, "rich_proxied_file")


def encodable(text: str, stream: TextIO) -> str:
    """`text` with what the stream's encoding lacks escaped: under LANG=C, that is all but ASCII."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with suppress(LookupError):
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(map(_escaped_letter, text))


def _escaped_letter(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
