"""The factor by which the loss is scaled in float16."""

from collections.abc import Sequence

import torch
from torch import Tensor

from train import metric_names
from train.parts import Metrics, Part
from train.step import Learner


def part(learner: Learner) -> Part:
    """The metric is absent in every other precision."""
    scale = LossScale(learner)
    learner.skips.watchers.append(scale)
    return Part(name="loss_scale", metrics=scale.metrics)


class LossScale:
    """Copied from the device together with all else that a row needs (SkippedSteps.watchers)."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._scale: float | None = None

    def pending(self) -> Tensor | None:
        scaler = self._learner.scaler
        if not scaler.is_enabled():
            return None
        return scaler.scale(torch.ones((), device=self._learner.device))

    def count(self, applied: Sequence[bool], numbers: Sequence[float]) -> None:
        self._scale = numbers[0] if numbers else None

    def metrics(self, metrics: Metrics) -> Metrics:
        if self._scale is None:
            return metrics
        return {**metrics, metric_names.LOSS_SCALE: self._scale}
