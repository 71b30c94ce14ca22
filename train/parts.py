"""Features beside the loop: each is a Part, which wraps some of the loop's functions.

The wrapping is done once, before the first step: the loop and the step call nothing of a part by
name. One order of parts, from the inside out, serves all functions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

Metrics = Mapping[str, float]
Around = Callable[[Any], Any]
"""Takes a function (or an iterable) and returns one that does the same, and something besides."""

Kept = Callable[[], AbstractContextManager[None]]


class HasState(Protocol):
    """What a checkpoint holds: numbers, texts, tensors, and lists and dicts of these."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> Any: ...


def unchanged(inner: Any) -> Any:
    return inner


class Apart:
    """What is computed beside the steps: `with apart():`. Who measures steps keeps its time and its
    memory out.
    """

    def __init__(self) -> None:
        self._keepers: list[Kept] = []

    def add(self, keeper: Kept) -> None:
        self._keepers.append(keeper)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with ExitStack() as stack:
            for keeper in self._keepers:
                stack.enter_context(keeper())
            yield


@dataclass(frozen=True, kw_only=True)
class Part:
    """A feature. All ranks have the same parts, and call each together."""

    name: str
    """The key of its state in a checkpoint."""
    gradient: Around = unchanged
    """Around compute_gradient(learner, window) -> losses."""
    windows: Around = unchanged
    """Around the iterable of windows."""
    shares: Around = unchanged
    """Around the iterator of this rank's shares of steps, before any of them is counted."""
    evaluation: Around = unchanged
    """Around evaluate(module) -> {metric: value}."""
    save: Around = unchanged
    """Around save(step), which makes a checkpoint."""
    metrics: Callable[[Metrics], Metrics] = unchanged
    """For a row that is due: takes the metrics of the parts inside it, and adds its own.

    A part that sends messages to other ranks does so before anything that may fail on one alone.
    """
    of_rank: Callable[[], Metrics] = dict
    """Values of this rank for a row, which gets the largest over ranks, by one message."""
    state: HasState | None = None
    """For checkpoints."""
    exports: Mapping[str, Any] = field(default_factory=dict)
    """By file name: modules whose weights a finished run saves besides the model's."""
    closing_line: Callable[[], str] = str
    """Printed at the end of a run, unless empty."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run, the innermost first. Each chain is folded when it is asked for, once."""

    parts: Sequence[Part]

    def gradient(self, compute_gradient: Any) -> Any:
        return _folded(compute_gradient, [part.gradient for part in self.parts])

    def windows(self, windows: Any) -> Any:
        return _folded(windows, [part.windows for part in self.parts])

    def shares(self, shares: Any) -> Any:
        return _folded(shares, [part.shares for part in self.parts])

    def evaluation(self, evaluate: Any) -> Any:
        return _folded(evaluate, [part.evaluation for part in self.parts])

    def save(self, save: Any) -> Any:
        return _folded(save, [part.save for part in self.parts])

    def metrics(
        self, over_ranks: Callable[[Metrics], Metrics], kept: Kept = nullcontext
    ) -> dict[str, float]:
        """{metric: value} for a row, of all parts; all ranks call it together.

        `over_ranks` takes the values of this rank and gives those of all. What fails inside
        `kept()` may be raised later: the parts that follow are asked all the same.
        """
        own: dict[str, float] = {}
        for part in self.parts:
            with kept():
                own |= part.of_rank()
        metrics = over_ranks(own)
        for part in self.parts:
            with kept():
                metrics = part.metrics(metrics)
        return dict(metrics)

    def states(self) -> dict[str, HasState]:
        return {part.name: part.state for part in self.parts if part.state is not None}

    def exports(self) -> dict[str, Any]:
        exported: dict[str, Any] = {}
        for part in self.parts:
            exported |= part.exports
        return exported

    def closing_lines(self) -> list[str]:
        return [part.closing_line() for part in self.parts]


def _folded(inner: Any, layers: Sequence[Around]) -> Any:
    for layer in layers:
        inner = layer(inner)
    return inner
