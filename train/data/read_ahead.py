"""Samples that are read ahead in a known order, and taken in nearly that order."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from train.batch.window import Batch
from train.data.shares import DataError

T = TypeVar("T")


class Key(NamedTuple):
    """What is read by one request."""

    step: int
    part: int


Answer = Batch | DataError


class Queue:
    """What was read, by key. Of steps that are over nothing is kept."""

    def __init__(self) -> None:
        self._requested: deque[Key] = deque()  # in the order of the requests
        self._waiting: dict[Key, Answer] = {}  # read, and not taken
        self._read: Iterator[Answer] | None = None

    def noted(self, requests: Iterator[tuple[Key, T]]) -> Iterator[T]:
        """The requests, whose keys are kept for their answers."""
        for key, request in requests:
            self._requested.append(key)
            yield request

    @contextmanager
    def reading(self, read: Iterator[Answer]) -> Iterator[None]:
        """`read` gives the answers, in the order of the requests; afterwards nothing is read."""
        self._read = read
        try:
            yield
        finally:
            self._read = None
            self._waiting.clear()

    def take(self, key: Key) -> Batch | None:
        """None: it is not available any more. Raises the error that is the answer to this key."""
        # The step before is kept: the weights of a step are asked for before the micro-batches of
        # the one before it.
        over = [other for other in self._waiting if other.step < key.step - 1]
        for other in over:
            del self._waiting[other]
        while key not in self._waiting:
            if self._read is None:
                return None
            # Read before the key is looked up: `noted` appends it when the request is made.
            answer = next(self._read, None)
            if answer is None:
                return None
            answered = self._requested.popleft()
            if answered.step >= key.step - 1:
                self._waiting[answered] = answer
            # Nothing of a step comes behind an answer of the step after the next: what this key
            # stands for was taken, or freed, before.
            if answered.step > key.step + 1:
                return None
        return raised(self._waiting.pop(key))


def raised(answer: Answer) -> Batch:
    """The batch; raises where the answer is an error."""
    if isinstance(answer, DataError):
        raise answer
    return answer
