"""When a micro-step of a step begins, for parts that measure inside a gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from train.step import Learner


def announcing(learner: Learner, begin: Callable[[], None]) -> Learner:
    """The same learner, which calls `begin` before the forward pass of each micro-step."""
    return replace(learner, task=_Announcing(learner.task, begin))


class _Announcing:
    """A task that tells when its loss_sum is called: once in each micro-step."""

    def __init__(self, task: Any, begin: Callable[[], None]) -> None:
        self._task = task
        self._begin = begin

    def loss_sum(self, model: Any, batch: Any) -> Any:
        self._begin()
        return self._task.loss_sum(model, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)
