"""Regression: numbers, by the squared error."""

from typing import Any

import torch
from torch import Tensor

from train.batch.window import Batch
from train.tasks._calling import outputs_of, tensor_of
from train.tasks.moments import Moments

VARIANCE = "_variance"
"""Of the targets: not logged, but r2 follows from it."""


class Regression:
    """Mean squared error over all targets. Metrics, exact over a full set: mse, rmse, mae, r2.

    Batch: inputs (samples, ...) as the model takes them, targets (samples, ...). The model returns
    the targets' shape, or that with a further dimension of 1. r2 = 1 - sum of squared errors / sum
    of squared deviations from the mean; several targets have a mean each, and their sums are added
    up.
    """

    columns = ("inputs", "targets")
    weight_columns = ("targets",)

    def loss_weight(self, batch: Batch) -> float:
        return float(batch["targets"].numel())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return self._errors(model, batch).square().sum()

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, float] | Moments]:
        errors = self._errors(model, batch).double()
        targets = batch["targets"]
        count = float(targets.numel())
        squares = errors.square().sum()
        return {
            "loss": (squares, count),
            "mse": (squares, count),
            "mae": (errors.abs().sum(), count),
            VARIANCE: Moments.of(targets.reshape(len(targets), -1)),
        }

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        logged = {name: value for name, value in metrics.items() if not name.startswith("_")}
        if "mse" not in logged:
            return logged
        logged["rmse"] = logged["mse"] ** 0.5
        if metrics[VARIANCE]:  # targets that are all the same have no r2
            logged["r2"] = 1 - logged["mse"] / metrics[VARIANCE]
        return logged

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """Else other shapes would be broadcast against each other, and the loss mean nothing."""
        outputs = tuple(tensor_of(model, outputs_of(model, one)).shape[1:])
        targets = tuple(columns["targets"].shape[1:])
        if outputs in (targets, (*targets, 1)):
            return None
        return (
            f"targets have shape {targets}, but the model returns {outputs} for a sample. Change "
            "model.args"
        )

    def _errors(self, model: Any, batch: Batch) -> Tensor:
        outputs = tensor_of(model, outputs_of(model, batch))
        targets = batch["targets"]
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return wide.view_as(targets) - targets
