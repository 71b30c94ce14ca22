"""What ranks say to each other beside their messages: texts, over the store by which they met.

No rank has to take part in anything. Where the store does not answer, since the process that holds it is gone or
stopped, nothing happens; it is not asked again, since each question would wait for the store's time-out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Board:
    """Of one thread, which has a connection of its own."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._answers = True

    def pin(self, subject: str, text: str) -> None:
        with self._asking():
            if self._answers:
                self._store.set(f"isobatch/{subject}/{self._rank}", text)

    def read_of(self, subject: str, rank: int) -> str | None:
        key = f"isobatch/{subject}/{rank}"
        with self._asking():
            if self._answers and self._store.check([key]):
                return str(self._store.get(key).decode())
        return None

    def read(self, subject: str) -> list[str | None]:
        """What each rank has pinned up last; None: nothing that can be read."""
        return [self.read_of(subject, rank) for rank in range(self._world_size)]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            self._answers = False
