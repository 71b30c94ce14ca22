"""Which step is complete on this rank: what a run that fails may still save, and from where a step
is done again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from train.batch.window import Window
from train.distributed.accelerator import free_memory
from train.errors import ShortOfMemory
from train.step import ComputeGradient, Learner

MOST_BYTES = 2**26
"""Of buffers, for a copy of them before each step: it costs no more than a forward pass that reads
them.
"""

Again = Callable[[Exception, Window], Window | None]
"""What to compute in place of a window that has failed with this error; None: nothing."""


class Whole:
    """`step`: the one whose state this rank holds; None from the first write of an update until the
    step is counted.

    A gradient moves no trained weight, but what else is in a checkpoint may move in its forward
    passes. Buffers are put back (torch counts no version of a BatchNorm's, so all are copied).
    Where that would not do, `step` is None from the begin of the gradient on: frozen parameters may
    follow the others, an extra state is known to the module alone.
    """

    def __init__(self, step: int, learner: Learner) -> None:
        self.step: int | None = step
        self.again: Again = lambda error, window: None
        # samples of a micro-batch, where it is fewer than windows come with
        self.most: int | None = None
        # the same, for the start after this one, where this one has to end
        self.remembered: int | None = None
        self.window: Window | None = None  # of the last gradient that was computed
        self._learner = learner
        self._buffers = list(learner.module.buffers())
        self._computing: int | None = None  # the step of the last gradient that was begun
        self._before: list[Tensor] | None = None
        self._frozen = _Frozen([p for p in learner.module.parameters() if not p.requires_grad])
        if _can_be_put_back(learner.module):
            self._before = [buffer.detach().clone() for buffer in self._buffers]
        learner.optimizer.register_step_pre_hook(self._begin_update)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; where it fails and `again` has an answer, that is computed from the
        state before.
        """

        def marked(learner: Learner, window: Window) -> Tensor:
            self._computing = window.k
            if self._frozen.parameters:
                self._frozen.look()
            if self._before is None:
                self.step = None
            elif self._buffers:
                with torch.no_grad():
                    torch._foreach_copy_(self._before, self._buffers)
            if self.most is not None:
                window = window.recut(self.most)
            while True:
                self.window = window
                try:
                    return compute_gradient(learner, window)
                except Exception as error:
                    instead = self.again(error, window)
                    if instead is None:
                        if isinstance(error, ShortOfMemory) and error.__cause__ is not None:
                            # it knows where memory ran out
                            raise error.__cause__ from error.__cause__.__cause__
                        raise
                # not before: until here the error holds what did not fit
                free_memory(learner.device)
                window = instead

        return marked

    def put_back(self) -> int | None:
        """`step`, to whose state this rank is brought back; None where that cannot be."""
        if self.step is None or self._before is None or self._computing != self.step + 1:
            return self.step
        if self._frozen.have_moved:
            return None
        if [id(buffer) for buffer in self._learner.module.buffers()] != [
            id(buffer) for buffer in self._buffers
        ]:
            return None  # the module has put others in their place
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
        return self.step

    def _begin_update(self, *_: object) -> None:
        self.step = None


class _Frozen:
    """Parameters that are not trained: those of a teacher may follow the others while a gradient is
    computed.

    What is written into them counts their versions, except by way of `.data`: so their norms are
    looked at, too, when the first steps of a start begin.
    """

    STEPS = 3

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._versions: list[int] = []
        self._norms: list[Tensor] = []
        self._looks = 0
        self._has_moved = False

    def look(self) -> None:
        """A gradient begins."""
        versions = [p._version for p in self.parameters]
        self._has_moved |= bool(self._looks) and versions != self._versions
        self._versions = versions
        if self._looks < self.STEPS:
            norms = [torch.linalg.vector_norm(p.detach()) for p in self.parameters if p.numel()]
            if self._looks:
                self._has_moved |= not all(map(torch.equal, norms, self._norms))
            self._norms = norms
            self._looks += 1

    @property
    def have_moved(self) -> bool:
        return self._has_moved or [p._version for p in self.parameters] != self._versions


def _can_be_put_back(module: nn.Module) -> bool:
    buffers = list(module.buffers())
    plain = all(b.layout is torch.strided and not b.is_meta for b in buffers)
    other = any(not isinstance(value, Tensor) for value in module.state_dict().values())
    return plain and not other and sum(b.nbytes for b in buffers) <= MOST_BYTES
