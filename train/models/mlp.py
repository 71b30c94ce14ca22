"""A multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    (samples, ...) -> (samples, outputs): dimensions after the first are flattened. (samples,) is
    one number per sample.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inputs = inputs
        widths = [inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        # Not flatten(1), which refuses inputs of one dimension: one number per sample.
        flat = inputs.reshape(len(inputs), -1)
        if flat.shape[1] != self.inputs:
            raise ValueError(
                f"MLP(inputs={self.inputs}) takes {self.inputs} numbers a sample, and got "
                f"{flat.shape[1]}. Set: model.args.inputs={flat.shape[1]}"
            )
        logits: Tensor = self.layers(flat)
        return logits
