"""To look at a model in the middle of its training, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.randomness import Generators


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Buffers, modes and generators are put back, whatever happens inside; gives what puts the modes back earlier."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    modes = [(part, part.training) for part in module.modules()]

    def training_modes() -> None:
        for part, mode in modes:  # one by one: a user may have frozen some
            part.training = mode

    try:
        with Generators(device).kept():
            yield training_modes
    finally:
        training_modes()
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
