"""Which step is complete on this rank: what a failing run may save, and where a retry starts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from train.batch.window import Window
from train.distributed.accelerator import free_memory
from train.errors import ShortOfMemory
from train.step import ComputeGradient, Learner

MAX_BUFFER_BYTES = 2**26
"""Of buffers that are copied before each step: no dearer than a forward pass that reads them."""

Retry = Callable[[Exception, Window], Window | None]
"""Takes the error and its window; gives the window to compute in its place, or None."""


class CompleteStep:
    """`step`: the one whose state this rank holds; None while there is no such step.

    It is None from the first write of an update until the step is counted. A gradient moves no
    trained weight, but its forward passes may move what else is in a checkpoint: buffers are copied
    before it and put back (all of them: torch counts no version of a BatchNorm's). Where that would
    not do, `step` is None from the start of the gradient on: an extra state is known to the module
    alone, and large buffers are not copied.
    """

    def __init__(self, step: int, learner: Learner) -> None:
        self.step: int | None = step
        self.retry: Retry = lambda error, window: None
        self.max_micro: int | None = None
        """Samples of a micro-batch, where it is fewer than windows come with."""
        self.max_micro_of_next_start: int | None = None
        """The same, for the start after this one, where this one has to end."""
        self.window: Window | None = None
        """Of the last gradient that was computed."""
        self._learner = learner
        self._buffers = list(learner.module.buffers())
        self._saved_buffers: list[Tensor] | None = None
        self._computing: int | None = None  # the step of the last gradient that was begun
        self._frozen = _Frozen([p for p in learner.module.parameters() if not p.requires_grad])
        if _can_be_put_back(learner.module):
            self._saved_buffers = [buffer.detach().clone() for buffer in self._buffers]
        # A hook of the optimizer itself: the last moment at which nothing is written yet.
        learner.optimizer.register_step_pre_hook(self._begin_update)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; where it fails and `retry` gives a window, that one is computed."""

        def marked(learner: Learner, window: Window) -> Tensor:
            self._begin_gradient(window)
            # Windows still come as they were planned: they are read ahead, some of them before
            # memory ran out.
            if self.max_micro is not None:
                window = window.recut(self.max_micro)
            while True:
                self.window = window
                try:
                    return compute_gradient(learner, window)
                except Exception as error:
                    instead = self.retry(error, window)
                    if instead is None:
                        if isinstance(error, ShortOfMemory) and error.__cause__ is not None:
                            # torch's own error knows where memory ran out
                            raise error.__cause__ from error.__cause__.__cause__
                        raise
                # Not before: inside `except` the error holds the tensors that did not fit.
                free_memory(learner.device)
                window = instead

        return marked

    def put_back(self) -> int | None:
        """Brings this rank back to the state of `step`, and returns it; None where it cannot."""
        # Only a gradient that has begun, and not yet become an update, has moved buffers of the
        # state of `step`.
        is_in_gradient = self.step is not None and self._computing == self.step + 1
        if self._saved_buffers is None or not is_in_gradient:
            return self.step
        # Frozen parameters are not copied: that one has moved is seen, and cannot be undone.
        if self._frozen.have_moved:
            return None
        buffers = list(self._learner.module.buffers())
        if list(map(id, buffers)) != list(map(id, self._buffers)):
            return None  # the module has replaced its buffers by other tensors
        with torch.no_grad():
            for buffer, saved in zip(self._buffers, self._saved_buffers, strict=True):
                buffer.copy_(saved)
        return self.step

    def _begin_gradient(self, window: Window) -> None:
        self._computing = window.k
        if self._frozen.parameters:
            self._frozen.check()
        if self._saved_buffers is None:
            self.step = None
        elif self._buffers:
            # One call for all of them: it runs at each step.
            with torch.no_grad():
                torch._foreach_copy_(self._saved_buffers, self._buffers)

    def _begin_update(self, *_: object) -> None:
        self.step = None


class _Frozen:
    """Parameters that are not trained: a teacher's may follow the others during a gradient.

    Writing to a tensor counts its version, except by way of `.data`: so their norms are compared,
    too, when the first steps of a start begin. Not later, since norms cost time.
    """

    STEPS_WITH_NORMS = 3

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._versions: list[int] = []
        self._norms: list[Tensor] = []
        self._checks = 0
        self._has_moved = False

    def check(self) -> None:
        """Called when a gradient begins."""
        is_first = self._checks == 0
        versions = self._current_versions()
        # From one gradient to the next: whatever moved it, in a forward pass or after the update.
        if not is_first and versions != self._versions:
            self._has_moved = True
        self._versions = versions
        if self._checks < self.STEPS_WITH_NORMS:
            norms = [torch.linalg.vector_norm(p.detach()) for p in self.parameters if p.numel()]
            if not is_first and not all(map(torch.equal, norms, self._norms)):
                self._has_moved = True
            self._norms = norms
            self._checks += 1

    @property
    def have_moved(self) -> bool:
        return self._has_moved or self._current_versions() != self._versions

    def _current_versions(self) -> list[int]:
        return [p._version for p in self.parameters]


def _can_be_put_back(module: nn.Module) -> bool:
    buffers = list(module.buffers())
    if sum(b.nbytes for b in buffers) > MAX_BUFFER_BYTES:
        return False
    if any(b.layout is not torch.strided or b.is_meta for b in buffers):
        return False
    # get_extra_state() of a module may give anything, which only the module can put back.
    return all(isinstance(value, Tensor) for value in module.state_dict().values())
