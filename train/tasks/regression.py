"""Numbers to come near to."""

from typing import Any

import torch
from torch import Tensor

from train.batch.window import Batch
from train.tasks._calling import outputs_of, tensor_of
from train.tasks.moments import Moments


class Regression:
    """Mean squared error over all targets. Metrics, exact over a whole set: mse, rmse, mae, r2.

    Batch: inputs (samples, ...) as the model takes them, targets (samples, ...). The model returns
    the targets' shape, or that with one dimension of 1 behind it. r2 = 1 - sum of squared errors /
    sum of squared distances from the mean; several targets have a mean each, and their sums are
    added up.
    """

    columns = ("inputs", "targets")
    weight_columns = ("targets",)

    def loss_weight(self, batch: Batch) -> float:
        return float(batch["targets"].numel())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        return self._errors(model, batch).square().sum()

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, float] | Moments]:
        errors, targets = self._errors(model, batch).double(), batch["targets"]
        count = float(targets.numel())
        squares = errors.square().sum()
        sums = {
            "loss": (squares, count),
            "mse": (squares, count),
            "mae": (errors.abs().sum(), count),
        }
        return sums | {VARIANCE: Moments.of(targets.reshape(len(targets), -1))}

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        told = {name: value for name, value in metrics.items() if not name.startswith("_")}
        if "mse" not in told:
            return told
        told["rmse"] = told["mse"] ** 0.5
        if metrics[VARIANCE]:  # targets that are all the same have no r2
            told["r2"] = 1 - told["mse"] / metrics[VARIANCE]
        return told

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """Shapes that differ would be broadcast against each other, and the loss mean nothing."""
        found, wanted = (
            tensor_of(model, outputs_of(model, one)).shape[1:],
            columns["targets"].shape[1:],
        )
        if found in (wanted, (*wanted, 1)):
            return None
        return (
            f"targets have shape {tuple(wanted)}, but the model returns {tuple(found)} for a "
            "sample. Change model.args"
        )

    def _errors(self, model: Any, batch: Batch) -> Tensor:
        outputs, targets = tensor_of(model, outputs_of(model, batch)), batch["targets"]
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        return wide.view_as(targets) - targets


VARIANCE = "_variance"
"""Of the targets: no metric, but r2 is made of it."""
