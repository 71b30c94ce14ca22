"""What ranks say to each other beside their messages: texts, over the store by which they met.

No rank has to take part in anything. Where the store does not answer, since the process that holds
it is gone or stopped, nothing happens; it may answer again later, when a job that was frozen goes
on.
"""

import os
from contextlib import suppress
from itertools import count
from typing import Any

_STARTS = count()


def next_start() -> str:
    """A name for a start of a training, the same on all ranks: they start the same ones, and start
    again together.

    A store that is made anew for each start knows no earlier ones: there, machines that came later
    count for nothing.
    """
    outlives = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if outlives else "0"
    return f"{restarts}.{next(_STARTS)}"


class Board:
    """Of one thread, which has a connection of its own."""

    def __init__(self, store: Any, rank: int, world_size: int, start: str) -> None:
        """`start`: see next_start; a store outlives starts that failed, and holds what they have
        pinned up.
        """
        self._store, self._rank, self._world_size = store, rank, world_size
        self._start = start

    def pin(self, subject: str, text: str) -> None:
        with suppress(RuntimeError):
            self._store.set(self._key(subject, self._rank), text)

    def read_of(self, subject: str, rank: int) -> str | None:
        with suppress(RuntimeError):
            return self._read(subject, rank)
        return None

    def read(self, subject: str) -> list[str | None]:
        """What each rank has pinned up last; None: nothing that can be read."""
        texts: list[str | None] = [None] * self._world_size
        # Around all of them: each question to a store that is gone waits for its time-out.
        with suppress(RuntimeError):
            for rank in range(self._world_size):
                texts[rank] = self._read(subject, rank)
        return texts

    def _read(self, subject: str, rank: int) -> str | None:
        key = self._key(subject, rank)
        return str(self._store.get(key).decode()) if self._store.check([key]) else None

    def _key(self, subject: str, rank: int) -> str:
        return f"isobatch/{self._start}/{subject}/{rank}"
