"""Where the time (and, on a GPU, the memory) of a step goes, measured on the steps that get a row.

A phase ends where the next begins: data (until the window is there), forward_backward, of it sync (from this rank's
last local gradient to the end of the reduction), optimizer (until its step is done). On a GPU the marks are events
in the stream, read once the host has waited for the row anyway: measuring adds no synchronisation.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from train import names
from train.window import Window

P = ParamSpec("P")
T = TypeVar("T")


class Phases:
    """Watches a step from outside the loop: around its iterator, around its gradient, and at its end."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        mark_memory: Callable[[str | None], None],
        sampled: Callable[[int], bool],
    ) -> None:
        self._cuda = parameters[0].is_cuda
        self._parameters = parameters
        self._mark_memory = mark_memory
        self._sampled = sampled
        self._armed = False
        self._marks: dict[str, float | torch.cuda.Event] = {}
        self._data_seconds = 0.0
        optimizer.register_step_post_hook(self._on_update)

    def windows(self, windows: Iterable[Window]) -> Iterator[Window]:
        iterator = iter(windows)
        while True:
            start = time.perf_counter()
            window = next(iterator, None)
            if window is None:
                return
            self._data_seconds = time.perf_counter() - start
            self._armed = self._sampled(window.k)
            yield window

    def around(self, compute_gradient: Callable[P, T]) -> Callable[P, T]:
        """The same function, its beginning, end and last local gradient marked on the steps that are sampled."""

        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            if not self._armed:
                return compute_gradient(*args, **kwargs)
            hooks = [p.register_post_accumulate_grad_hook(self._on_gradient) for p in self._parameters]
            self._mark_memory(None)
            self._mark("start")
            try:
                return compute_gradient(*args, **kwargs)
            finally:
                self._mark("gradient")
                self._mark_memory(names.FORWARD_BACKWARD_PEAK)
                for hook in hooks:
                    hook.remove()

        return watched

    def _on_update(self, *_: object) -> None:
        if self._armed and "gradient" in self._marks:
            self._mark("end")
            self._mark_memory(names.OPTIMIZER_PEAK)

    def take(self) -> dict[str, float]:
        """{metric: seconds} of the step that was sampled last; call it when the device has caught up."""
        marks, self._marks = self._marks, {}
        if "end" not in marks:
            return {}
        between = self._between
        return {
            names.DATA_SECONDS: self._data_seconds,
            names.FORWARD_BACKWARD_SECONDS: between(marks["start"], marks["gradient"]),
            names.SYNC_SECONDS: between(marks["local"], marks["gradient"]),
            names.OPTIMIZER_SECONDS: between(marks["gradient"], marks["end"]),
        }

    def _on_gradient(self, parameter: torch.Tensor) -> None:
        self._mark("local")

    def _mark(self, name: str) -> None:
        if not self._cuda:
            self._marks[name] = time.perf_counter()
            return
        event = self._marks.get(name)
        if not isinstance(event, torch.cuda.Event):
            event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks[name] = event

    @staticmethod
    def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return start.elapsed_time(end) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
