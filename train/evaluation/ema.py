"""A moving average of the weights, evaluated and saved beside them. It changes nothing about the training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from train.evaluation.evaluator import Evaluate
from train.parts import Part
from train.step import Learner

Tensors = tuple[Tensor, ...] | list[Tensor]
PREFIX = "ema/"  # of its metrics: eval/ema/loss


def part(learner: Learner, decay: float | None) -> Part:
    """`decay`: ema.decay; None: no average is kept."""
    if decay is None:
        return Part(name="ema")
    ema = Ema(learner, decay)
    return Part(
        name="ema",
        evaluation=ema.around,
        state=ema,
        exports={"ema": ema.module},
    )


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

    def around(self, evaluate: Evaluate) -> Evaluate:
        """The same evaluation, and after it that of the average."""

        def both(module: nn.Module) -> dict[str, float]:
            plain = evaluate(module)
            averaged = evaluate(self.module)
            for name, value in averaged.items():
                if name.rpartition("/")[2] != "samples":  # how many there are stands in the row already
                    plain[PREFIX + name] = value
            return plain

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
