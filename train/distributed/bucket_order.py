"""In which order DDP reduces gradients: fixed before the first step of a start, and the same after
a resume.

DDP guesses its buckets, and builds them a second time after its first synchronised backward pass,
in the order in which gradients arrived there. Sums of three addends and more come out otherwise in
another order, so that a resumed run, which begins with the guess again, would not be bit-identical;
and where the order of execution depends on weights or data, its second guess would be another one
too. Here that first backward pass is one of our own making.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class BucketOrder:
    """The order of a run's parameters, by name; it is a checkpoint's where there is one."""

    def __init__(self, trained: Sequence[str], order: Sequence[str]) -> None:
        self._trained = trained
        self.names = self._of_all(order)

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names = self._of_all(state["order"])

    def _of_all(self, order: Sequence[str]) -> list[str]:
        """Also where other parameters are trained by now: those that the order does not know come
        last.
        """
        known = set(self._trained)
        kept = [name for name in order if name in known]
        return kept + [name for name in reversed(self._trained) if name not in set(kept)]


class _Zero(nn.Module):
    """Stands in for the wrapped module. No hook of the user's fires, nothing is drawn, no buffer
    moves.
    """

    def __init__(self, order: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._order = tuple(order)  # in a tuple: they are not this module's own

    def forward(self, _: Tensor) -> Tensor:
        return zero_loss(self._order)


def zero_loss(order: Sequence[nn.Parameter]) -> Tensor:
    """0, whose backward pass gives each parameter a gradient of zeros, one after the other in this
    order.

    autograd runs what was recorded last first, and a parameter's gradient is stored as soon as it
    is there.
    """
    loss = torch.zeros((), device=order[0].device)
    for parameter in reversed(order):
        loss = loss + parameter.sum().real * 0.0
    # NaN or inf in a weight would make the value NaN; its gradient is 0 all the same.
    return loss


def fix_buckets(model: Any, order: Sequence[nn.Parameter]) -> None:
    """Let DDP build its buckets in this order, and leave gradients of 0 that are views of them.

    `model`: a DistributedDataParallel. All ranks call it together; rank 0's buckets are those of
    all.
    """
    module = model.module
    model.module = _Zero(order)
    try:
        with torch.enable_grad(), _without_hooks(order):
            # The first pass shows DDP the order; before the second it builds the buckets. Then
            # .grad are views of them.
            for _ in range(2):
                for parameter in order:
                    parameter.grad = None
                # An argument, since DDP looks for one to bring to its device.
                model(torch.zeros((), device=order[0].device)).backward()
    finally:
        model.module = module


@contextmanager
def _without_hooks(parameters: Sequence[Any]) -> Iterator[None]:
    """Inside, the user's hooks on parameters see no gradient: these are of no sample. DDP's own are
    of another kind.
    """
    hooks: list[dict[int, Any]] = []
    for parameter in parameters:
        hooks += filter(None, [parameter._backward_hooks, parameter._post_accumulate_grad_hooks])
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, before in zip(hooks, kept, strict=True):
            each.update(before)
