"""What shows that a rank still moves where no step does: the watchdog looks at it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

LEAST_BYTES = 2**16
"""Between two looks, for what is written to count as going on: logs and the watchdog itself write
less.
"""


class Pulse:
    """Of one rank."""

    def __init__(self) -> None:
        self.window = 0  # the one taken last: a rank that waits for its samples is one behind
        self._beats = 0
        self._writing = 0
        self._bytes = 0

    def beat(self) -> None:
        self._beats += 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Weights are written here, which may take long: meanwhile every piece that goes to a file
        is a beat.
        """
        self._writing += 1
        self.beat()
        try:
            yield
        finally:
            self._writing -= 1
            self.beat()

    def look(self) -> int:
        """A number that is another one where this rank has moved since the last look."""
        if self._writing:
            moved = _bytes_moved()
            if moved is None or moved - self._bytes >= LEAST_BYTES:
                self.beat()
                self._bytes = moved or 0
        return self._beats


def _bytes_moved() -> int | None:
    """That this process has read and written so far; None where the system does not count them
    (macOS).
    """
    with suppress(psutil.Error, AttributeError, OSError):
        counted = psutil.Process().io_counters()
        return int(counted.read_chars + counted.write_chars)
    return None
