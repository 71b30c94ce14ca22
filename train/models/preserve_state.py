"""Call a model in the middle of its training without leaving a trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.randomness import Generators


@contextmanager
def preserve_state(module: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Buffers, train/eval modes and generators are restored at the end, also after an error.

    Yields a function that restores the modes earlier.
    """
    # From each part's own dict, not from named_buffers: a forward pass may put another tensor
    # there, and the old one has to go back into the same place.
    buffers = []
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                buffers.append((part, name, buffer, buffer.clone()))
    modes = [(part, part.training) for part in module.modules()]

    def restore_modes() -> None:
        # One by one, in place of module.train(): a user may have frozen some.
        for part, mode in modes:
            part.training = mode

    try:
        with Generators(device).kept():
            yield restore_modes
    finally:
        restore_modes()
        with torch.no_grad():
            for part, name, buffer, copied in buffers:
                part._buffers[name] = buffer  # a forward may have put another tensor there
                buffer.copy_(copied)
