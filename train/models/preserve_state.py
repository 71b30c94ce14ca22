"""To look at a model in the middle of its training, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.randomness import Generators


@contextmanager
def preserve_state(module: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Buffers, modes and generators are put back, whatever happens inside; gives what puts the
    modes back earlier.
    """
    buffers = []
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                buffers.append((part, name, buffer, buffer.clone()))
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
            for part, name, buffer, kept in buffers:
                part._buffers[name] = buffer  # a forward may have put another tensor there
                buffer.copy_(kept)
