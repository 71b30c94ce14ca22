"""Classification: one label per sample, or per token or pixel of it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from train.batch.window import IGNORED, Batch
from train.tasks._calling import ModelOutputs, outputs_of, tensor_of
from train.tasks._labels import classes_of, wrong_numbers


class Classification:
    """Cross-entropy over the labels that are not -100. Metric: accuracy.

    Batch: inputs (samples, ...) as the model takes them, labels (samples, ...) int64 from 0, or
    -100 for none. The model returns logits (samples, classes, ...).
    """

    columns = ("inputs", "labels")
    weight_columns = ("labels",)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def num_classes(self, model: Any, batch: Batch) -> int:
        """Of the model; labels are compared with it before training."""
        with torch.no_grad():
            return self._logits(model, batch).shape[1]

    def loss_weight(self, batch: Batch) -> float:
        return float((batch["labels"] != IGNORED).count_nonzero())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        labels = batch["labels"]
        if labels.dtype.is_floating_point:
            labels = classes_of(labels)
        return self._loss_sum(self._logits(model, batch), labels)

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        logits = self._logits(model, batch)
        labels = classes_of(batch["labels"])
        is_counted = labels != IGNORED
        correct = (logits.argmax(1) == labels) & is_counted
        weight = is_counted.sum()
        return {
            "loss": (self._loss_sum(logits, labels), weight),
            "accuracy": (correct.sum(), weight),
        }

    def check(self, model: Any, one: Batch, columns: Batch) -> str | None:
        """Else a wrong label would end the training in the middle.

        By an IndexError, or by a device assertion that ends all work on a GPU.
        """
        labels = columns["labels"]
        if labels.is_floating_point() and labels.equal(labels.floor()):
            labels = classes_of(labels)
        return wrong_numbers("labels", labels, self._logits(model, one).shape[1])

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        logits = outputs_of(model, batch)
        if not isinstance(logits, Tensor):
            logits = tensor_of(model, logits)
        if logits.ndim < 2:
            raise ModelOutputs(
                f"the model returns a tensor of shape {tuple(logits.shape)} for "
                f"{len(batch['labels'])} samples, and classification needs one number for each "
                "class: (samples, classes). Two classes are 2 outputs"
            )
        return logits

    def _loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(wide, labels, reduction="sum", label_smoothing=self.label_smoothing)
