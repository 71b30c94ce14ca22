"""Every rank holds all of the model: what these kinds of parallelism have in common."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from train.distributed.flat_buckets import ComputeGradient
from train.distributed.norms import clip_for, norm_for
from train.distributed.ranks import Ranks
from train.parts import HasState


class Replicated:
    """Every rank holds all weights, gradients and optimizer state. Also for a single process."""

    is_sharded = False
    frees_gradients = True
    state: HasState | None = None
    second: Callable[[], nn.Module] | None = None
    note = ""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model = model
        self.writes_state = ranks.is_main
        self.total_norm = norm_for(model)
        self.clip = clip_for(model)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return compute_gradient

    extra = around

    def check(self) -> None:
        pass

    def reduce_late(self, steps: int) -> None:
        pass

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors]).cpu()
