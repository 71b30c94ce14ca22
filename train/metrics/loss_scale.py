"""What float16's loss is multiplied by."""

from collections.abc import Sequence

import torch
from torch import Tensor

from train import metric_names
from train.parts import Metrics, Part
from train.step import Learner


def part(learner: Learner) -> Part:
    """Absent in every other precision."""
    scale = LossScale(learner)
    learner.skips.watchers.append(scale)
    return Part(name="loss_scale", metrics=scale.metrics)


class LossScale:
    """Read with all else that a row needs of the device."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._value: float | None = None

    def pending(self) -> Tensor | None:
        scaler = self._learner.scaler
        return (
            scaler.scale(torch.ones((), device=self._learner.device))
            if scaler.is_enabled()
            else None
        )

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        self._value = numbers[0] if numbers else None

    def metrics(self, metrics: Metrics) -> Metrics:
        return metrics if self._value is None else {**metrics, metric_names.LOSS_SCALE: self._value}
