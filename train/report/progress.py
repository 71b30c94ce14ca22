"""How far a run is, what is due, and how fast it goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from train.batch.window import Place, Window


@dataclass
class Progress:
    """Counted, not planned: what has really been trained, over all ranks."""

    step: int = 0
    epoch: float = 0.0
    """Passes over the data; of a stream: those that are complete."""
    samples_seen: int = 0
    tokens_per_sample: int = 0
    """data.block_size; 0: samples are no blocks."""
    tokens_seen: int = 0
    """Without the padding of a set's last block."""
    empty_steps: int = 0
    """Steps in which no label counted: nothing to train on."""
    complete_epochs: int = 0
    samples_of_epoch: int = 0
    """Of the epoch that has not ended yet."""
    evaluation_owed: bool = False
    """An evaluation after this step is due: it follows the save, and a resume does it first."""

    @property
    def place(self) -> Place:
        return Place(self.complete_epochs, self.samples_of_epoch, self.samples_seen)

    def advance(self, window: Window, samples_per_epoch: int | None) -> None:
        self.step = window.k
        self.samples_seen += window.samples
        # window.tokens is None where samples are no blocks.
        self.tokens_seen += window.tokens or 0
        # By the window, not by the count: a stream does not know how many samples its epoch has.
        if window.last_of_epoch:
            self.complete_epochs = window.epoch + 1
            self.samples_of_epoch = 0
        else:
            self.samples_of_epoch += window.samples
        # As a fraction where the size is known; a stream can count only whole epochs.
        if samples_per_epoch:
            self.epoch = self.samples_seen / samples_per_epoch
        else:
            self.epoch = self.complete_epochs
        self.empty_steps += window.is_empty


@dataclass(frozen=True)
class Interval:
    """Due every so many steps, or at the step that completes every so many samples or tokens."""

    steps: int | None = None
    samples: int | None = None
    tokens: int | None = None

    def due(self, progress: Progress, window: Window) -> bool:
        # By the counts themselves: where the batch grows, or tokens vary, steps pass the multiples
        # at places of their own.
        if self.samples:
            return _crosses(self.samples, progress.samples_seen, window.samples)
        if self.tokens is not None:
            return _crosses(self.tokens, progress.tokens_seen, window.tokens or 0)
        return self.steps is not None and progress.step % self.steps == 0


def _crosses(interval: int, seen: int, of_step: int) -> bool:
    """Whether the step has taken the count over a multiple of `interval`."""
    # A step may pass several multiples, and is due once.
    before = seen - of_step
    return seen // interval > before // interval


class Clock:
    """Training time, without evaluations and saves."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds`: of training, before this start."""
        # perf_counter does not jump where the system's clock is set.
        self._start = time.perf_counter()
        self._lap = 0.0
        self._total = seconds

    # Laps and pauses both end in _collect: what passes between them counts once.

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._collect()
        try:
            yield
        finally:
            # Not _collect: the seconds of the pause are dropped.
            self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds of training since the last lap."""
        self._collect()
        seconds = self._lap
        self._lap = 0.0
        self._total += seconds
        return seconds

    @property
    def seconds(self) -> float:
        """Training time up to the last lap."""
        return self._total

    @property
    def seconds_so_far(self) -> float:
        """Training time up to the last lap or the last pause."""
        return self._total + self._lap

    def _collect(self) -> None:
        now = time.perf_counter()
        self._lap += now - self._start
        self._start = now


def duration(seconds: float) -> str:
    """`4.2 s`, `3:07 min`, `5:02:11 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    # Rounded before it is divided: 119.7 s must not become 1:60 min.
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h"
