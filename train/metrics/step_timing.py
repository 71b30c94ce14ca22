"""Where the time of a step goes, measured on the steps that get a row.

A step lasts from the end of the optimizer's step before it to the end of its own; where something
else took place in between (an evaluation, the start, a step without an update) from the end of
that. Its parts add up to it: data (what it waited for the window), forward_backward, of it sync
(from this rank's last local gradient to the end of the reduction; one rank has none), optimizer
(until its step is done), and the rest. On a GPU the marks are events in the stream, read once the
host has waited for the row anyway: measuring adds no synchronisation; data is then no more than the
time without a gradient.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from train import metric_names
from train.batch.window import Window
from train.distributed.ranks import Ranks
from train.metrics.cpu_wait import CpuWait
from train.metrics.micro_steps import announcing
from train.parts import Apart, Metrics, Part
from train.step import ComputeGradient, Learner

P = ParamSpec("P")
T = TypeVar("T")


def part(learner: Learner, ranks: Ranks, row_due: Callable[[int], bool], apart: Apart) -> Part:
    # FSDP2 reduces block by block, and no hook of a parameter tells when: there is no last local
    # gradient.
    synchronised = (
        learner.parameters if ranks.world_size > 1 and not learner.parallel.is_sharded else ()
    )
    timing = StepTiming(learner.device.type == "cuda", learner.optimizer, synchronised, row_due)
    apart.add(timing.apart)

    def timed(metrics: Metrics) -> Metrics:
        return {**metrics, **timing.take()}

    return Part(
        name="step_timing",
        gradient=timing.around,
        windows=timing.windows,
        evaluation=timing.outside,
        save=timing.outside,
        metrics=timed,
        of_rank=CpuWait().take,
    )


class StepTiming:
    """Watches a step from outside the loop: around its iterator, around its gradient, and at its
    end.
    """

    def __init__(
        self,
        cuda: bool,
        optimizer: torch.optim.Optimizer,
        synchronised: Sequence[nn.Parameter],
        sampled: Callable[[int], bool],
    ) -> None:
        """`synchronised`: parameters whose gradients are reduced over the ranks when the last of
        them has arrived.
        """
        self._cuda = cuda
        self._synchronised = synchronised
        self._sampled = sampled
        self._armed = False  # this step is sampled
        self._upcoming: bool | None = None  # the next one is; not known before the first
        self._marks: dict[str, float | torch.cuda.Event] = {}
        self._begin: float | torch.cuda.Event = 0.0  # of this step, where it is sampled
        self._end: float | torch.cuda.Event | None = None  # of the step before
        self._data_seconds = 0.0
        # see `apart`
        self._apart: list[tuple[bool, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        optimizer.register_step_post_hook(self._on_update)

    def windows(self, windows: Iterable[Window]) -> Iterator[Window]:
        iterator = iter(windows)
        while True:
            if self._upcoming is not False:
                self._begin, self._end = self._end or self._now(), None
            start = time.perf_counter()
            window = next(iterator, None)
            if window is None:
                return
            self._data_seconds = time.perf_counter() - start
            self._armed = self._sampled(window.k) if self._upcoming is None else self._upcoming
            # the end of this one will be its beginning
            self._upcoming = self._sampled(window.k + 1)
            yield window

    def outside(self, function: Callable[P, T]) -> Callable[P, T]:
        """The same function, such as an evaluation, which belongs to no step."""

        def apart(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            finally:
                self._end = None

        return apart

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What takes place inside belongs to no step, though it does so in the midst of one."""
        if not self._armed:
            yield
            return
        begin = self._now()
        try:
            yield
        finally:
            self._apart.append(("gradient" in self._marks, begin, self._now()))

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, its beginning, end and last local gradient marked on the steps that
        are sampled.
        """

        def watched(learner: Learner, window: Window) -> Tensor:
            if not self._armed:
                return compute_gradient(learner, window)
            hooks: list[RemovableHandle] = []
            ahead = len(window.micro_batches)

            def begin_micro_step() -> None:
                # A hook is called for each parameter: only the last micro-step has the last local
                # gradient.
                nonlocal ahead
                ahead -= 1
                if ahead == 0:
                    hooks.extend(
                        p.register_post_accumulate_grad_hook(self._on_gradient)
                        for p in self._synchronised
                    )

            announced = announcing(learner, begin_micro_step) if self._synchronised else learner
            self._mark("start")
            try:
                return compute_gradient(announced, window)
            finally:
                self._mark("gradient")
                for hook in hooks:
                    hook.remove()

        return watched

    def _on_update(self, *_: object) -> None:
        if self._armed or self._upcoming:
            self._end = self._now()
        if self._armed and self._end is not None and "gradient" in self._marks:
            self._marks["end"] = self._end

    def take(self) -> dict[str, float]:
        """{metric: seconds} of the step that was sampled last; call it when the device has caught
        up.
        """
        marks, self._marks = self._marks, {}
        apart, self._apart = self._apart, []
        if "end" not in marks:
            return {}
        between = self._between
        early = sum(between(begin, end) for is_late, begin, end in apart if not is_late)
        late = sum(between(begin, end) for is_late, begin, end in apart if is_late)
        before = between(self._begin, marks["start"]) - early
        # on a GPU the host may have waited while the device was still at work
        data = min(self._data_seconds, before)
        sync = (
            {metric_names.SYNC_SECONDS: between(marks["local"], marks["gradient"])}
            if "local" in marks
            else {}
        )
        return {
            metric_names.DATA_SECONDS: data,
            metric_names.FORWARD_BACKWARD_SECONDS: between(marks["start"], marks["gradient"]),
            **sync,
            metric_names.OPTIMIZER_SECONDS: between(marks["gradient"], marks["end"]) - late,
            metric_names.REST_SECONDS: before - data,
        }

    def _on_gradient(self, parameter: Tensor) -> None:
        self._mark("local")

    def _mark(self, name: str) -> None:
        event = self._marks.get(name)
        if isinstance(event, torch.cuda.Event):
            event.record()  # the one that is there: this is called once for each parameter
        else:
            self._marks[name] = self._now()

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return start.elapsed_time(end) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
