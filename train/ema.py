"""A moving average of the weights, evaluated and saved beside them. It changes nothing about the training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from train.evaluation import Evaluation
from train.step import Learner

Tensors = tuple[Tensor, ...] | list[Tensor]
PREFIX = "ema/"  # of its metrics: eval/ema/loss


class Ema:
    """After each update the average moves by 1 - decay of the way to the weights; the first update sets it.

    A step that was not applied, since its gradient was not finite, does not move it. Buffers are the model's own.
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        self._averaged = AveragedModel(learner.module, multi_avg_fn=self._average)
        self._module, self._optimizer, self._decay = learner.module, learner.optimizer, decay
        learner.optimizer.register_step_post_hook(lambda *_: self._averaged.update_parameters(self._module))

    @property
    def module(self) -> nn.Module:
        """The model with the averaged weights."""
        averaged: nn.Module = self._averaged.module
        return averaged

    def around(self, evaluation: Callable[[], dict[str, float]] | None) -> Callable[[], dict[str, float]] | None:
        """The same evaluation, and after it that of the average."""
        if not isinstance(evaluation, Evaluation):
            return evaluation
        own = replace(evaluation, module=self.module)

        def both() -> dict[str, float]:
            plain, averaged = evaluation(), own()
            # How many samples there are is told already.
            return plain | {PREFIX + n: v for n, v in averaged.items() if n.rpartition("/")[2] != "samples"}

        return both

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._averaged.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)

    @torch.no_grad()
    def _average(self, averages: Tensors, weights: Tensors, updates: int | Tensor) -> None:
        skipped = getattr(self._optimizer, "found_inf", None)  # on the device: the host need not wait for it
        for average, weight in zip(averages, weights, strict=True):
            applied: Any = 1 if skipped is None else 1 - skipped.to(average.dtype)
            average.lerp_(weight, applied * (1 - self._decay))
