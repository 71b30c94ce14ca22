"""NAME: data and a loss of your own. The config that names them is my/NAME.yaml.

As it stands: a noisy sine, some of whose targets are unknown, and the Huber loss over the others.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import huber_loss

Batch = dict[str, Tensor]  # columns by name; dim 0 of each: the samples


def data(size: int = 1000) -> Dataset:
    """Your data: a datasets.Dataset whose columns hold one array of numbers per sample.

    All arrays of a column have one shape. `data.args` of the config are the arguments. Every rank
    calls it, and must get the same samples in the same order.
    """
    random = np.random.default_rng(0)
    x = random.uniform(-3, 3, (size, 1)).astype(np.float32)
    y = (np.sin(x[:, 0]) + 0.1 * random.normal(size=size)).astype(np.float32)
    return Dataset.from_dict({"x": x, "y": y, "known": random.random(size) < 0.9})


class Task:
    """What a loss is. It never divides, and knows nothing of micro-batches and ranks."""

    # Of a batch; `data.columns` of the config says where each comes from.
    columns = ("inputs", "targets", "known")
    # Those that loss_weight reads.
    weight_columns = ("known",)

    def __init__(self, delta: float = 1.0) -> None:
        """`task.args` of the config."""
        self.delta = delta

    def loss_weight(self, batch: Batch) -> float:
        """What the loop divides the sum of the losses by: here the number of known targets.

        For all samples: len(batch["targets"]).
        """
        return float(batch["known"].sum())

    def loss_sum(self, model: Any, batch: Batch) -> Tensor:
        """The sum of the losses, never their mean: 0-dim, float32 or wider."""
        return self._huber(self._errors(model, batch))

    def eval_sums(self, model: Any, batch: Batch) -> dict[str, tuple[Tensor, float]]:
        """{metric: (sum, weight)}: over a whole set, eval/METRIC is sum / weight.

        `loss` is needed.
        """
        errors = self._errors(model, batch)
        weight = self.loss_weight(batch)
        return {"loss": (self._huber(errors), weight), "mae": (errors.abs().sum(), weight)}

    def _errors(self, model: Any, batch: Batch) -> Tensor:
        """Call `model(...)` itself, nothing inside it: only then the ranks reduce gradients."""
        outputs = model(batch["inputs"]).squeeze(1)
        # Sums in 16 bits would lose samples.
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return torch.where(batch["known"], wide - batch["targets"], 0.0)

    def _huber(self, errors: Tensor) -> Tensor:
        return huber_loss(errors, torch.zeros_like(errors), reduction="sum", delta=self.delta)
