"""Defers an error of one rank between two steps, until all ranks can end together, with a save.

Rank 0 writes rows and records a profile; the others do not. If it raised at once, the others would
wait for it in the step that they have begun, and nothing could be saved. So it takes part until the
ranks next agree on whether one has failed: before a step, or at the end.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Alone:
    """Of one rank."""

    def __init__(self) -> None:
        self.messages = 0  # collectives in which this rank has taken part
        self.error: Exception | None = None
        self.left_out = False
        """A step was skipped, since this rank could not read its samples: do not save after it."""

    def check_whole(self) -> None:
        """Raise the error for which a step was skipped. Called where all ranks agree."""
        if self.left_out:
            self.check()

    def check(self) -> None:
        """Raise the deferred error. Called where all ranks agree."""
        if self.error is not None:
            raise self.error

    def keep(self, error: Exception) -> None:
        self.error = self.error or error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Defer an error inside; raise it after a collective has begun, as others then wait."""
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
        """`layers(windows)`; once a layer has failed, the rest of `windows` without the layers."""
        source: _Source[T] = _Source()
        plain = source.recorded(windows)
        stream = iter(layers(plain))
        previous: T | None = None
        while True:
            try:
                window = next(stream)
            except StopIteration:
                return
            except Exception as error:
                if source.failed:  # on all ranks
                    raise
                self.keep(error)
                # A generator that has raised is finished. The windows below it are not, and the
                # other ranks go on with theirs.
                stream = plain
                # The failed layer may have fetched a window and not handed it on. Without that one
                # this rank would be a step behind the others.
                if source.last is None or source.last is previous:
                    continue
                window = source.last  # the layer has fetched it, and not yielded it
            previous = window
            yield window


class _Source(Generic[T]):
    """The last window that the layers have fetched, and whether the windows themselves failed."""

    def __init__(self) -> None:
        self.last: T | None = None
        self.failed = False

    def recorded(self, windows: Iterable[T]) -> Iterator[T]:
        try:
            for window in windows:
                self.last = window
                yield window
        except Exception:
            self.failed = True
            raise
