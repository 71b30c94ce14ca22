"""Where the time of a step goes, measured in the steps that get a row.

A step lasts from the end of the optimizer's step before it to the end of its own. Where something
else came in between (an evaluation, the start, a step without an update), it begins at the end of
that. Its parts add up to it:

    data                waiting for the window
    forward_backward    of it, sync: from this rank's last local gradient to the end of the
                        reduction; a single rank has none
    optimizer           until its step is done
    rest                all else

On a GPU the marks are events in the stream, read when the host has waited for the row anyway: the
measurement adds no synchronisation. Data is then at most the time without a gradient.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeVar

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

Mark = float | torch.cuda.Event
"""A point in time: seconds on the host's clock, or an event in the stream of a GPU."""

# What is decided about a step. Plain strings: comparing them in each step calls no function.
Decision = Literal["unknown", "measured", "unmeasured"]
UNKNOWN: Decision = "unknown"  # before the first window
MEASURED: Decision = "measured"
UNMEASURED: Decision = "unmeasured"

# The marks of a measured step, in the order in which they are set.
START = "start"  # of the gradient
LAST_LOCAL_GRADIENT = "last local gradient"
GRADIENT = "gradient"  # complete and reduced
END = "end"  # of the optimizer's step


def part(learner: Learner, ranks: Ranks, row_due: Callable[[int], bool], apart: Apart) -> Part:
    reduced: Sequence[nn.Parameter] = ()
    # FSDP2 reduces block by block, and its parameters' hooks do not fire: there is no last local
    # gradient.
    if ranks.world_size > 1 and not learner.parallel.is_sharded:
        reduced = learner.parameters
    timing = StepTiming(learner.device.type == "cuda", learner.optimizer, reduced, row_due)
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


@dataclass(frozen=True)
class _Interruption:
    """What was computed in the middle of a step, and belongs to none."""

    begin: Mark
    end: Mark
    is_after_gradient: bool


class StepTiming:
    """Measures a step from outside the loop.

    Around its iterator, around its gradient, and by a hook after the optimizer's step.
    """

    def __init__(
        self,
        cuda: bool,
        optimizer: torch.optim.Optimizer,
        reduced: Sequence[nn.Parameter],
        row_due: Callable[[int], bool],
    ) -> None:
        """`row_due(k)`: whether step k gets a row, and so is measured.

        `reduced`: parameters whose gradients are reduced over the ranks, complete when the last
        local one has arrived.
        """
        self._cuda = cuda
        self._reduced = reduced
        self._row_due = row_due
        self._this_step: Decision = UNKNOWN
        self._next_step: Decision = UNKNOWN
        self._begin: Mark = 0.0  # of this step, where it is measured
        # The end of the step before; None where something else came after it.
        self._end: Mark | None = None
        self._data_seconds = 0.0
        self._marks: dict[str, Mark] = {}  # of this step, where it is measured
        self._interruptions: list[_Interruption] = []
        optimizer.register_step_post_hook(self._on_update)

    def windows(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The same windows, the wait for each of them timed."""
        iterator = iter(windows)
        while True:
            if self._next_step != UNMEASURED:
                self._begin = self._end or self._now()
                self._end = None
            start = time.perf_counter()
            window = next(iterator, None)
            if window is None:
                return
            self._data_seconds = time.perf_counter() - start
            if self._next_step == UNKNOWN:
                self._next_step = MEASURED if self._row_due(window.k) else UNMEASURED
            self._this_step = self._next_step
            # One step ahead: the end of this step is where a measured one after it begins.
            self._next_step = MEASURED if self._row_due(window.k + 1) else UNMEASURED
            yield window

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; in measured steps it sets START, LAST_LOCAL_GRADIENT and GRADIENT."""

        def marked(learner: Learner, window: Window) -> Tensor:
            if self._this_step != MEASURED:
                return compute_gradient(learner, window)
            hooks: list[RemovableHandle] = []
            micro_steps_ahead = len(window.micro_batches)

            def begin_micro_step() -> None:
                # The last micro-step alone has the last local gradient, and a hook costs a call for
                # each parameter.
                nonlocal micro_steps_ahead
                micro_steps_ahead -= 1
                if micro_steps_ahead == 0:
                    for parameter in self._reduced:
                        hooks.append(
                            parameter.register_post_accumulate_grad_hook(self._on_gradient)
                        )

            if self._reduced:
                learner = announcing(learner, begin_micro_step)
            self._mark(START)
            try:
                return compute_gradient(learner, window)
            finally:
                self._mark(GRADIENT)
                for hook in hooks:
                    hook.remove()

        return marked

    def outside(self, function: Callable[P, T]) -> Callable[P, T]:
        """The same function, such as an evaluation, which belongs to no step."""

        def outside_of_steps(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            finally:
                self._end = None

        return outside_of_steps

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is computed inside belongs to no step, though it is in the middle of one."""
        if self._this_step != MEASURED:
            yield
            return
        begin = self._now()
        try:
            yield
        finally:
            interruption = _Interruption(begin, self._now(), GRADIENT in self._marks)
            self._interruptions.append(interruption)

    def take(self) -> dict[str, float]:
        """{metric: seconds} of the last measured step; call it once the device has caught up."""
        marks = self._marks
        self._marks = {}
        interruptions = self._interruptions
        self._interruptions = []
        if END not in marks:  # a step without an update
            return {}
        interrupted_before = 0.0  # seconds, before the gradient was complete
        interrupted_after = 0.0
        for each in interruptions:
            seconds = _between(each.begin, each.end)
            if each.is_after_gradient:
                interrupted_after += seconds
            else:
                interrupted_before += seconds
        before_gradient = _between(self._begin, marks[START]) - interrupted_before
        # On a GPU the host may have waited for data while the device was still at work.
        data = min(self._data_seconds, before_gradient)
        optimizer = _between(marks[GRADIENT], marks[END]) - interrupted_after
        times = {
            metric_names.DATA_SECONDS: data,
            metric_names.FORWARD_BACKWARD_SECONDS: _between(marks[START], marks[GRADIENT]),
        }
        if LAST_LOCAL_GRADIENT in marks:
            sync = _between(marks[LAST_LOCAL_GRADIENT], marks[GRADIENT])
            times[metric_names.SYNC_SECONDS] = sync
        times[metric_names.OPTIMIZER_SECONDS] = optimizer
        times[metric_names.REST_SECONDS] = before_gradient - data
        return times

    def _on_update(self, *_: object) -> None:
        """After the optimizer's step."""
        if self._this_step == MEASURED or self._next_step == MEASURED:
            self._end = self._now()
            if self._this_step == MEASURED and GRADIENT in self._marks:
                self._marks[END] = self._end

    def _on_gradient(self, parameter: Tensor) -> None:
        # Each local gradient moves the mark: the last one stays.
        self._mark(LAST_LOCAL_GRADIENT)

    def _mark(self, name: str) -> None:
        event = self._marks.get(name)
        if isinstance(event, torch.cuda.Event):
            event.record()  # again, in place of a new event for each parameter
        else:
            self._marks[name] = self._now()

    def _now(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: Mark, end: Mark) -> float:
    """Seconds."""
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000  # it gives milliseconds
    assert isinstance(start, float)
    assert isinstance(end, float)
    return end - start
