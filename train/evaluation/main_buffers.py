"""Rank 0's buffers on every rank: while training, each rank has its own where they
follow the data.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.distributed.ranks import Ranks
from train.errors import UserError


class BuffersDiffer(UserError):
    """The ranks hold buffers of different shapes under one name."""


@torch.no_grad()
def take_main(module: nn.Module, ranks: Ranks) -> None:
    """Overwrite the buffers of `module`, of any type, by rank 0's. Raises BuffersDiffer on all
    ranks.
    """
    if ranks.world_size == 1:
        return
    buffers = dict(module.named_buffers())
    _check_shapes(buffers, ranks)
    for buffer in buffers.values():
        if buffer.numel():
            # As bytes: no backend knows all types. Contiguous: gaps of a view are nobody's to send.
            flat = buffer.contiguous().reshape(-1).view(torch.uint8)
            ranks.copy_from_main([flat])
            buffer.copy_(flat.view(buffer.dtype).view(buffer.shape))


def _check_shapes(buffers: Mapping[str, Tensor], ranks: Ranks) -> None:
    own = {name: f"{tuple(b.shape)} {b.dtype}" for name, b in buffers.items()}
    of_ranks = ranks.gather(own)
    main = of_ranks[0]
    for rank, other in enumerate(of_ranks):
        differing = sorted(name for name in {*main, *other} if main.get(name) != other.get(name))
        if differing:
            name = differing[0]
            raise BuffersDiffer(
                f"an evaluation uses rank 0's buffers, but {name} is {main.get(name)} on rank 0 "
                f"and {other.get(name)} on rank {rank}. Give a buffer that follows the data one "
                "shape for good"
            )
