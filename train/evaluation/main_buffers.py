"""Rank 0's buffers on every rank, for an evaluation.

While training, each rank has its own where they follow the data, such as BatchNorm's statistics.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.distributed.ranks import Ranks
from train.errors import UserError


class BuffersDiffer(UserError):
    """The ranks hold buffers of different shapes under one name."""


@torch.no_grad()
def copy_buffers_from_main(module: nn.Module, ranks: Ranks) -> None:
    """Overwrites the buffers of `module`, of any type. Raises BuffersDiffer on all ranks."""
    if ranks.world_size == 1:
        return
    buffers = dict(module.named_buffers())
    _check_shapes(buffers, ranks)
    for buffer in buffers.values():
        if buffer.numel():
            # As bytes: no backend knows all types. Contiguous: a view has gaps between its
            # elements, which are not the buffer's to send.
            flat = buffer.contiguous().reshape(-1).view(torch.uint8)
            ranks.copy_from_main([flat])
            buffer.copy_(flat.view(buffer.dtype).view(buffer.shape))


def _check_shapes(buffers: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Before anything is sent: ranks that expect other sizes would wait for each other."""
    # As text: one small message for all buffers, before any of their bytes.
    shapes = {name: f"{tuple(b.shape)} {b.dtype}" for name, b in buffers.items()}
    shapes_of_ranks = ranks.gather(shapes)
    main = shapes_of_ranks[0]
    for rank, other in enumerate(shapes_of_ranks):
        for name in sorted({*main, *other}):
            if main.get(name) != other.get(name):
                raise BuffersDiffer(
                    f"an evaluation uses rank 0's buffers, but {name} is {main.get(name)} on rank "
                    f"0 and {other.get(name)} on rank {rank}. Give a buffer that follows the data "
                    "one shape for good"
                )
