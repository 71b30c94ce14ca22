"""Gradients summed in float32 or wider and reduced explicitly, in flat buckets: for where DDP
cannot reduce them.

DDP reduces a gradient while the last micro-batch is in its backward pass, as `.grad` then stands:
for parameters in bf16 that is a sum in bf16, which at 256 micro-batches is off by more than 1e-2.
Here every micro-batch runs under no_sync, its gradients are added to flat buckets as they arrive,
and the buckets are reduced once per step.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from train.distributed.failures import agree
from train.distributed.ranks import Ranks

BUCKET_ELEMENTS = 2**23  # 32 MiB of float32: what one message to the other ranks holds


ComputeGradient = Callable[[Any, Any], Tensor]
"""Takes a learner and a window, as train/step.py has it."""


class FlatBuckets:
    """Sums of gradients over micro-batches; each parameter's sum is a view of a bucket."""

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.parameters = parameters
        self.ranks = ranks
        self.buckets: list[Tensor] = []
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._arrived: set[nn.Parameter] = set()

    def _allocate(self) -> None:
        for group in _groups(self.parameters):
            sizes = [p.numel() for p in group]
            wide = torch.promote_types(group[0].dtype, torch.float32)
            bucket = torch.zeros(sum(sizes), dtype=wide, device=group[0].device)
            self.buckets.append(bucket)
            for parameter, part in zip(group, bucket.split(sizes), strict=True):
                self._sums[parameter] = part.view(parameter.shape)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, whose gradient is reduced here: also for a model inside DDP, which
        then reduces nothing.

        What it raises on one rank ends it on all, as failures.agree says.
        """

        if not self.buckets:  # not before: what is tried before the first step needs the room
            self._allocate()

        def reduced(learner: Any, window: Any) -> Any:
            try:
                # The loop's own no_sync, inside, comes back to this one.
                with learner.accelerator.no_sync(learner.model), self._collecting():
                    losses = compute_gradient(learner, window)
            except Exception as error:
                self._agree(error)
                raise
            self._reduce(self._agree(None))
            return losses

        return reduced

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        """Inside, the gradient of each backward pass is added to the buckets, and `.grad` stays
        None.
        """
        for bucket in self.buckets:
            bucket.zero_()
        self._arrived.clear()
        hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self.parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, parameter: nn.Parameter) -> None:
        """The gradient of one micro-batch is added up and freed."""
        assert parameter.grad is not None
        self._sums[parameter].add_(parameter.grad)
        parameter.grad = None
        self._arrived.add(parameter)

    def _reduce(self, used: Collection[nn.Parameter]) -> None:
        """Give `.grad` of the parameters `used` the mean over the ranks, in the parameter's own
        type.

        The others keep None, which an optimizer leaves alone: zeros would let AdamW decay them.
        """
        for bucket in self.buckets if self.ranks.world_size > 1 else ():
            # The mean, as DDP has it: the step's factor R counts on it.
            bucket.div_(self.ranks.world_size)
        self.ranks.add_up(self.buckets)
        for parameter in self.parameters:
            if parameter in used:
                parameter.grad = self._sums[parameter].to(parameter.dtype)

    def _agree(self, error: Exception | None) -> Collection[nn.Parameter]:
        """The parameters that got a gradient on any rank, by one message between the last backward
        pass and the reduction. `error`: what kept this rank from computing its part.
        """
        of_ranks = agree(
            self.ranks, error, [float(parameter in self._arrived) for parameter in self.parameters]
        )
        return {p for p, ranks in zip(self.parameters, of_ranks, strict=True) if ranks}


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one type and device, in order, up to BUCKET_ELEMENTS together; a larger one
    alone.
    """
    groups: list[list[nn.Parameter]] = []
    for p in parameters:
        last = groups[-1] if groups else []
        alike = last and (last[0].dtype, last[0].device) == (p.dtype, p.device)
        if alike and sum(other.numel() for other in last) + p.numel() <= BUCKET_ELEMENTS:
            last.append(p)
        else:
            groups.append([p])
    return groups
