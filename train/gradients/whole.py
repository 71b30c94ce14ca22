"""Which step is complete on this rank: what a run that fails may still save."""

import torch
from torch import Tensor, nn

from train.batch.window import Window
from train.step import ComputeGradient, Learner

MOST_BYTES = 2**26
"""Of buffers, for a copy of them before each step: it costs no more than a forward pass that reads them."""


class Whole:
    """`step`: the one whose state this rank holds; None from the first write of an update until the step is counted.

    A gradient moves no trained weight, but what else is in a checkpoint may move in its forward passes. Buffers are
    put back (torch counts no version of a BatchNorm's, so all are copied). Where that would not do, `step` is None from
    the begin of the gradient on: frozen parameters may follow the others, an extra state is known to the module alone.
    """

    def __init__(self, step: int, learner: Learner) -> None:
        self.step: int | None = step
        self._module = learner.module
        self._buffers = list(learner.module.buffers())
        self._computing: int | None = None  # the step of the last gradient that was begun
        self._before: list[Tensor] | None = None
        if _can_be_put_back(learner.module):
            self._before = [buffer.detach().clone() for buffer in self._buffers]
        learner.optimizer.register_step_pre_hook(self._begin_update)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        def marked(learner: Learner, window: Window) -> Tensor:
            self._computing = window.k
            if self._before is None:
                self.step = None
            elif self._buffers:
                with torch.no_grad():
                    torch._foreach_copy_(self._before, self._buffers)
            return compute_gradient(learner, window)

        return marked

    def put_back(self) -> int | None:
        """`step`, to whose state this rank is brought back; None where that cannot be."""
        if self.step is None or self._before is None or self._computing in (None, self.step):
            return self.step
        if [id(buffer) for buffer in self._module.buffers()] != [id(buffer) for buffer in self._buffers]:
            return None  # the module has put others in their place
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
        return self.step

    def _begin_update(self, *_: object) -> None:
        self.step = None


def _can_be_put_back(module: nn.Module) -> bool:
    buffers = list(module.buffers())
    plain = all(b.layout is torch.strided and not b.is_meta for b in buffers)
    frozen = any(not p.requires_grad for p in module.parameters())
    other = any(not isinstance(value, Tensor) for value in module.state_dict().values())
    return plain and not frozen and not other and sum(b.nbytes for b in buffers) <= MOST_BYTES
