"""Texts that ranks publish beside their collectives, in the key-value store by which they met.

No rank has to take part. Where the store does not answer, since the process that holds it is gone
or stopped, nothing is raised: it may answer later, when a frozen job resumes.
"""

import os
from contextlib import suppress
from itertools import count
from typing import Any

_STARTS = count()


def next_start() -> str:
    """A name for this start of a training, the same on all ranks.

    They start the same trainings, and restart together. Where the store itself is new for each
    start, restarts are not counted: machines that came later have counted fewer.
    """
    # torchrun's agent holds the store over restarts of its ranks, and so the texts of the starts
    # that failed.
    outlives = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if outlives else "0"
    return f"{restarts}.{next(_STARTS)}"


class Board:
    """A connection to the store, for one thread."""

    def __init__(self, store: Any, rank: int, world_size: int, start: str) -> None:
        """`start`: see next_start; a store still holds the texts of starts that failed."""
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._start = start

    def pin(self, subject: str, text: str) -> None:
        with suppress(RuntimeError):
            self._store.set(self._key(subject, self._rank), text)

    def read_of(self, subject: str, rank: int) -> str | None:
        with suppress(RuntimeError):
            return self._read(subject, rank)
        return None

    def read(self, subject: str) -> list[str | None]:
        """The last text of each rank; None where there is none, or it cannot be read."""
        texts: list[str | None] = [None] * self._world_size
        # Around the whole loop: each query to a store that is gone waits for its time-out.
        with suppress(RuntimeError):
            for rank in range(self._world_size):
                texts[rank] = self._read(subject, rank)
        return texts

    def _read(self, subject: str, rank: int) -> str | None:
        key = self._key(subject, rank)
        if not self._store.check([key]):  # get would block until the key is set
            return None
        return str(self._store.get(key).decode())

    def _key(self, subject: str, rank: int) -> str:
        return f"isobatch/{self._start}/{subject}/{rank}"
