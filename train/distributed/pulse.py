"""The heartbeat of a rank, for the watchdog: progress between the ends of two steps."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

LEAST_BYTES = 2**16
"""Written between two polls, to count as progress: logs and the watchdog itself write less."""


class Pulse:
    """Of one rank."""

    def __init__(self) -> None:
        self.window = 0  # the last one fetched: a rank that waits for its samples is one behind
        self._beats = 0
        self._writing = 0
        self._bytes = 0

    def beat(self) -> None:
        self._beats += 1

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around a save, which may take long: meanwhile bytes that go to a file are beats."""
        self._writing += 1
        self.beat()
        try:
            yield
        finally:
            self._writing -= 1
            self.beat()

    def look(self) -> int:
        """A number that has changed where this rank made progress since the last poll."""
        if self._writing:
            # Without a count a save is progress for as long as it lasts.
            moved = _bytes_moved()
            if moved is None or moved - self._bytes >= LEAST_BYTES:
                self.beat()
                self._bytes = moved or 0
        return self._beats


def _bytes_moved() -> int | None:
    """Read and written by this process so far; None where the system has no count (macOS)."""
    with suppress(psutil.Error, AttributeError, OSError):
        counted = psutil.Process().io_counters()
        return int(counted.read_chars + counted.write_chars)
    return None
