"""When a micro-step begins, for parts that measure inside a gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from train.step import Learner


def announcing(learner: Learner, begin: Callable[[], None]) -> Learner:
    """The same learner; it calls `begin` before the forward pass of each micro-step."""
    return replace(learner, task=_Announcing(learner.task, begin))


class _Announcing:
    """The same task; `begin` is called before loss_sum, which a micro-step calls once."""

    def __init__(self, task: Any, begin: Callable[[], None]) -> None:
        self._task = task
        self._begin = begin

    def loss_sum(self, model: Any, batch: Any) -> Any:
        self._begin()
        return self._task.loss_sum(model, batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)
