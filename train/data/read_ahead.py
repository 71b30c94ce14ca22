"""Samples that are read ahead in a known order, and taken in nearly that order."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from train.batch.window import Batch
from train.data.shares import DataError

Key = tuple[int, int]
"""(step, part of it)"""
Answer = Batch | DataError
T = TypeVar("T")


class Queue:
    """What was read, by key. Of steps that are over it holds nothing: their rest is let go of."""

    def __init__(self) -> None:
        self._coming: deque[Key] = deque()  # in the order in which they were asked for
        self._waiting: dict[Key, Answer] = {}  # read before it was taken
        self._read: Iterator[Answer] | None = None

    def noted(self, requests: Iterator[tuple[Key, T]]) -> Iterator[T]:
        for key, request in requests:
            self._coming.append(key)
            yield request

    @contextmanager
    def reading(self, read: Iterator[Answer]) -> Iterator[None]:
        """`read` gives what was asked for, in order; after this nobody reads."""
        self._read = read
        try:
            yield
        finally:
            self._read = None
            self._waiting.clear()

    def take(self, key: Key) -> Batch | None:
        """None: it is not to be had any more. Raises the error that is the answer to this key, and
        to no other.
        """
        over = [other for other in self._waiting if other[0] < key[0] - 1]
        for other in over:
            del self._waiting[other]
        while key not in self._waiting:
            if self._read is None:
                return None
            # before the key is looked up: it is noted when it is asked for
            answer = next(self._read, None)
            if answer is None:
                return None
            found = self._coming.popleft()
            if found[0] >= key[0] - 1:
                self._waiting[found] = answer
            if found[0] > key[0] + 1:
                return None
        return raised(self._waiting.pop(key))


def raised(answer: Answer) -> Batch:
    if isinstance(answer, DataError):
        raise answer
    return answer
