"""The order in which DDP reduces gradients: fixed before the first step, and kept by a resume.

DDP guesses its buckets, and builds them again after its first synchronised backward pass, in the
order in which gradients arrived. In another order, sums of three addends or more are rounded
differently. So a resumed run, which would begin with the guess again, would not be bit-identical;
and where the order of execution depends on weights or data, the second order could differ too.
Here that first backward pass is an artificial one, in the order of the checkpoint.
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
        """All trained parameters: first those in `order`, then those that it does not name.

        A checkpoint may be of a run that trained other parameters.
        """
        trained = set(self._trained)
        ordered = [name for name in order if name in trained]
        named = set(ordered)
        # The rest in reverse order of registration, about the order in which gradients arrive: it
        # is what DDP itself begins with.
        return ordered + [name for name in reversed(self._trained) if name not in named]


class _Zero(nn.Module):
    """Replaces the wrapped module: no user's hook is called, no random number or buffer used."""

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
    """Let DDP build its buckets in this order; leaves gradients of 0 that are views of them.

    `model`: a DistributedDataParallel. All ranks call it together, and get rank 0's buckets.
    """
    # DDP's forward pass calls whatever its `module` is, and prepares the reduction. So a stand-in
    # is enough, and the user's model does not run.
    module = model.module
    model.module = _Zero(order)
    try:
        with torch.enable_grad(), _without_hooks(order):
            # DDP sees the order in the first pass, and builds its buckets before the second.
            # Then .grad are views of them.
            for _ in range(2):
                for parameter in order:
                    parameter.grad = None
                # With an argument, since DDP looks for one to move to its device.
                model(torch.zeros((), device=order[0].device)).backward()
    finally:
        model.module = module


@contextmanager
def _without_hooks(parameters: Sequence[Any]) -> Iterator[None]:
    """Inside, the user's hooks on parameters are not called: these gradients are of no sample.

    DDP's own hooks are of another kind, and stay.
    """
    hooks: list[dict[int, Any]] = []
    for parameter in parameters:
        hooks += filter(None, [parameter._backward_hooks, parameter._post_accumulate_grad_hooks])
    saved = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, before in zip(hooks, saved, strict=True):
            each.update(before)
