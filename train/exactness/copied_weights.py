"""The model on copies of its weights and buffers: in float64, or with weights rounded once more.

The copies take the places of the weights in the live module. A deep copy of the module would call
what is bound to the original, such as a block under activation checkpointing. The weights that are
trained are not written to.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from train.data.device_prefetch import Feed
from train.models.cast_arguments import arguments_cast_to
from train.models.precision import widened
from train.step import Learner

Conversion = Callable[[Tensor], Tensor]
"""Takes a weight, and gives the value of its copy."""


@contextmanager
def copied_weights(learner: Learner, convert: Conversion, dtype: torch.dtype) -> Iterator[Learner]:
    """A learner on converted copies, whose gradient is that of this rank alone.

    `dtype`: of the copies. float64 widens buffers, too. Not under FSDP2, where no rank holds a
    weight.
    """
    module = learner.module
    copies: dict[int, nn.Parameter] = {}
    parameters: list[tuple[nn.Module, str, nn.Parameter]] = []
    buffers: list[tuple[nn.Module, str, Tensor]] = []
    # Collected before anything is replaced: the walk must not meet its own copies.
    for part in module.modules():
        parameters += [(part, name, p) for name, p in part._parameters.items() if p is not None]
        buffers += [(part, name, b) for name, b in part._buffers.items() if b is not None]
    try:
        for part, name, p in parameters:
            # By identity: weights that are shared stay shared.
            if id(p) not in copies:
                copies[id(p)] = nn.Parameter(convert(p.detach()), p.requires_grad)
            # By setattr: recurrent layers collect their flat weights anew when one is set.
            setattr(part, name, copies[id(p)])
        for part, name, buffer in buffers:
            buffer_dtype = widened(buffer.dtype) if dtype is torch.float64 else buffer.dtype
            part._buffers[name] = buffer.to(buffer_dtype, copy=True)
        with arguments_cast_to(module, dtype):
            yield replace(
                learner,
                # One rank: a loss is multiplied by the world size for DDP's mean, and these
                # gradients are added up.
                world_size=1,
                model=module,
                parameters=[copies[id(p)] for p in learner.parameters],
                dtype=dtype,
                feed=Feed(learner.device, dtype),
                # No loss scale: nothing unscales these gradients.
                scaler=torch.amp.GradScaler(learner.device.type, enabled=False),
            )
    finally:
        for part, name, p in parameters:
            setattr(part, name, p)
        for part, name, buffer in buffers:
            part._buffers[name] = buffer


def in_float64(value: Tensor) -> Tensor:
    return value.to(widened(value.dtype), copy=True)
