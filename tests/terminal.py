"""A terminal for tests: a pty, a process whose stdin, stdout and stderr it is, and what a person
would see of it.
"""

import fcntl
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from tests.conftest import FORKS

_PART = re.compile(
    r"\x1b\[(?P<args>[?0-9;]*)(?P<what>[A-Za-z])|(?P<control>[\x00-\x1f\x7f])|(?P<text>[^\x00-\x1f\x7f]+)"
)


class Emulator:
    """The lines on a terminal, those that have scrolled away too. A line that is too long goes on
    in the next one.

    Where the terminal gets narrower the lines stay as they are, as in xterm: nothing flows anew.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0
        self.unknown: list[str] = []
        """Sequences that are not understood here: none is expected."""
        self.hidden = False
        """The cursor."""

    def feed(self, text: str) -> None:
        for part in _PART.finditer(text):
            if part["text"]:
                for letter in part["text"]:
                    self._put(letter)
            elif part["control"]:
                self._control(part["control"])
            else:
                self._sequence(part["args"], part["what"])

    def _put(self, letter: str) -> None:
        if self.column >= self.columns:
            self._down()
            self.column = 0
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _control(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._down()
        else:
            self.unknown.append(letter)

    def _sequence(self, args: str, what: str) -> None:
        if what == "K":
            kept = self.column if args in ("", "0") else 0
            self.lines[self.row] = self.lines[self.row][:kept]
        elif what == "A":
            self.row -= int(args or 1)
        elif what in "lh" and args == "?25":
            self.hidden = what == "l"
        elif what != "m":
            self.unknown.append(f"{args}{what}")

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines]


class Terminal:
    """`with Terminal(function, *args) as terminal:` runs `function(*args)` in a process of its own
    on a terminal.

    The process is forked from one that has imported train.main.
    """

    def __init__(
        self, function: Callable[..., Any], *args: Any, columns: int = 80, **environ: str
    ) -> None:
        self.master, slave = os.openpty()
        self.name = os.ttyname(slave)
        self._slave = slave
        self.emulator = Emulator(columns)
        self.resize(columns)
        environ = {"TERM": "xterm-256color", **environ}
        self.process = FORKS.Process(target=_on_terminal, args=(self.name, environ, function, args))

    def __enter__(self) -> "Terminal":
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
        self.close()
        os.close(self._slave)

    def close(self) -> None:
        """As when a window is closed."""
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def resize(self, columns: int) -> None:
        self.emulator.columns = columns
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, holds: Callable[[Emulator], bool], seconds: float = 20) -> Emulator:
        """Read until `holds(emulator)`, and fail where it does not in time."""
        end = time.monotonic() + seconds
        while not holds(self.emulator):
            assert time.monotonic() < end, "\n".join(self.emulator.shown)
            self._read(0.05)
        return self.emulator

    def read_all(self) -> Emulator:
        """Up to the end of the process."""
        while self.process.is_alive():
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.emulator

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        self.emulator.feed(os.read(self.master, 65536).decode(errors="replace"))
        return True


def _on_terminal(
    name: str, environ: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(environ)
    os.setsid()
    # the first that a session opens is the one that Ctrl-C reaches it by
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    encoding = environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding=encoding, closefd=False)
    function(*args)
