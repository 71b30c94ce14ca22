"""A small network for texts of bytes."""

import torch
from torch import Tensor, nn


class TextConv(nn.Module):
    """A convolution over the bytes of a text, then max pooling over all positions.

    tokens (samples, length), 0 to 255, and 256 where a text has ended -> (samples, outputs).
    Source: Kim, Convolutional Neural Networks for Sentence Classification, 2014; over characters:
    Zhang, Zhao and LeCun, 2015.
    """

    padding = 256

    def __init__(self, outputs: int, width: int = 64, kernel: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, width, padding_idx=self.padding)
        self.convolution = nn.Conv1d(width, width, kernel, padding="same")
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        # (samples, width, length): Conv1d takes the channels second.
        features = torch.relu(self.convolution(self.embedding(tokens).transpose(1, 2)))
        # So that no position after the end is the maximum: after ReLU none is below 0.
        features = features * (tokens != self.padding).unsqueeze(1)
        logits: Tensor = self.head(features.amax(2))
        return logits
