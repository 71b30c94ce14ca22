"""The live line: the last line of a terminal, written over while a run trains. By rich, where it is
installed.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from train.terminal import encodable, moves_cursor


class ForgivingStream:
    """A stream for rich that raises nothing: the terminal may be closed, and its encoding may lack
    a letter.

    rich itself ends the process where a pipe has lost its reader.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(encodable(text, self._stream))
        except (OSError, ValueError):  # ValueError: the stream is closed
            return 0
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    # rich asks for more than these two, such as isatty and encoding.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def live_line() -> Any:
    """rich's live display, started; None where rich is missing, or stdout is not a terminal that
    can move its cursor.
    """
    # Before rich is imported: a log of SLURM or a pipe needs none of it.
    if not moves_cursor(sys.stdout):
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None

    class CursorConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Never hidden: a process that is killed could not bring it back."""
            return False

    stream: Any = ForgivingStream(sys.stdout)
    # What others print goes through this console too: unchanged, without markup and without new
    # line breaks.
    console = CursorConsole(
        # rich would judge the terminal anew; moves_cursor has decided.
        file=stream,
        force_terminal=True,
        force_interactive=True,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
    )
    live = Live(
        console=console,
        refresh_per_second=4,
        transient=True,
        # A stderr that goes into a file stays there.
        redirect_stderr=sys.stderr.isatty(),
    )
    live.start()
    return live


def _columns() -> int:
    """As it is now: rich would believe an exported COLUMNS, which is as old as the shell."""
    with suppress(OSError):
        return max(2, os.get_terminal_size(1).columns)
    return 80


class FittedLine:
    """What the live line shows: computed again at each refresh, since the terminal may have another
    width by then.
    """

    def __init__(self, text: Callable[[int], str]) -> None:
        """`text(width)` gives the line."""
        self._text = text

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        # One cell is left free: some terminals would begin another line.
        width = min(options.max_width, _columns()) - 1
        line = Text(self._text(width), no_wrap=True, overflow="crop")
        line.truncate(width)
        yield line
