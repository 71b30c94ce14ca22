"""Restore model, optimizer, task and generators, bit for bit, after trial training steps."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.exactness.capture import capture
from train.models.preserve_state import preserve_state
from train.step import Learner


@contextmanager
def restored_afterwards(learner: Learner) -> Iterator[None]:
    """Inside, the learner may train; afterwards everything is as before, and gradients are freed.

    Copies of weights and optimizer state lie in the host's memory meanwhile.
    """
    # On the host: on a GPU the copies would take the memory that the trial steps are to find.
    weights = [(p, p.detach().to("cpu", copy=True)) for p in learner.module.parameters()]
    optimizer = _OptimizerState(learner.optimizer)
    attributes = capture(learner.module, learner.task)
    try:
        with preserve_state(learner.module, learner.device):
            yield
    finally:
        for parameter in learner.module.parameters():
            parameter.grad = None
        attributes.restore()
        with torch.no_grad():
            for parameter, copied in weights:
                # In place: optimizer, wrappers and a task may hold on to the parameters themselves.
                parameter.copy_(copied)
            optimizer.restore()


@dataclass(frozen=True)
class _StateValue:
    """One value of an optimizer's state, such as a moment."""

    value: Any
    copied: Any

    @classmethod
    def of(cls, value: Any) -> "_StateValue":
        if isinstance(value, Tensor):
            return cls(value, value.detach().to("cpu", copy=True))
        return cls(value, copy.deepcopy(value))

    def restored(self) -> Any:
        """The same tensor with its old numbers: other objects may hold on to it."""
        if isinstance(self.value, Tensor):
            self.value.copy_(self.copied)
            return self.value
        return self.copied


class _OptimizerState:
    """A copy of an optimizer's state and of the numbers of its parameter groups."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._state: dict[Any, dict[str, _StateValue]] = {}
        for parameter, values in optimizer.state.items():
            self._state[parameter] = {name: _StateValue.of(value) for name, value in values.items()}
        self._groups = []
        for group in optimizer.param_groups:
            self._groups.append({name: group[name] for name in group if name != "params"})
        # The flag that `update` gives to a fused optimizer.
        self._had_found_inf = hasattr(optimizer, "found_inf")

    def restore(self) -> None:
        # Cleared first: an optimizer that had no state yet has to be without one again.
        self._optimizer.state.clear()
        for parameter, values in self._state.items():
            for name, value in values.items():
                self._optimizer.state[parameter][name] = value.restored()
        for group, numbers in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(numbers)
        if not self._had_found_inf and hasattr(self._optimizer, "found_inf"):
            del self._optimizer.found_inf
