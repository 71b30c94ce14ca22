"""What fails on one rank alone, between two steps: kept until all ranks can end by it together,
with a save.

Rank 0 writes rows, and records a profile; the others do not. A rank that raised at once would be
missed in the step that the others are computing by then, and nothing could be saved. So it takes
part until the ranks next agree on whether one has failed: before a step, or at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Alone:
    """Of one rank."""

    def __init__(self) -> None:
        self.messages = 0  # in which this rank has taken part
        self.error: Exception | None = None
        self.left_out = False
        """A step was not applied, since this rank could not read its samples: no state after it is
        to be saved.
        """

    def check_whole(self) -> None:
        """Raises what kept a step from being applied. Asked where all ranks agree."""
        if self.left_out:
            self.check()

    def check(self) -> None:
        """Raises what was kept. Asked where all ranks agree."""
        if self.error is not None:
            raise self.error

    def keep(self, error: Exception) -> None:
        self.error = self.error or error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What fails inside is kept; it is raised where it has begun to talk to other ranks, which
        then wait for it.
        """
        before = self.messages
        try:
            yield
        except Exception as error:
            if self.messages != before:
                raise
            self.keep(error)

    def windows(
        self, windows: Iterable[T], layers: Callable[[Iterable[T]], Iterable[T]]
    ) -> Iterator[T]:
        """`layers(windows)`; from where a layer fails on, `windows` without them."""
        inner: _Inner[T] = _Inner()
        stream = inner.remembered(windows)
        chain = iter(layers(stream))
        seen: T | None = None
        while True:
            try:
                window = next(chain)
            except StopIteration:
                return
            except Exception as error:
                if inner.failed:  # on all ranks
                    raise
                self.keep(error)
                chain = stream
                if inner.given is None or inner.given is seen:
                    continue
                window = inner.given  # the layer has taken it, and not handed it on
            seen = window
            yield window


class _Inner(Generic[T]):
    """What the layers were given last, and whether it was the windows themselves that failed."""

    def __init__(self) -> None:
        self.given: T | None = None
        self.failed = False

    def remembered(self, windows: Iterable[T]) -> Iterator[T]:
        try:
            for window in windows:
                self.given = window
                yield window
        except Exception:
            self.failed = True
            raise
