"""Explicit reduction: gradients summed in float32 or wider, and reduced in flat buckets.

DDP reduces `.grad` during the last backward pass, in the parameter's type: for parameters in bf16
that is a sum in bf16, which at 256 micro-batches is off by more than 1e-2.
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

BUCKET_ELEMENTS = 2**23  # 32 MiB of float32, reduced by one message


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

        What it raises on one rank is raised on all, as failures.agree says.
        """

        if not self.buckets:  # only now: the trials before the first step need the memory
            self._allocate()

        def reduced(learner: Any, window: Any) -> Any:
            try:
                # The loop's own no_sync, inside, restores this one.
                with learner.accelerator.no_sync(learner.model), self._collecting():
                    losses = compute_gradient(learner, window)
            except Exception as error:
                # The other ranks are in the same message, and raise with this one instead of
                # waiting in the reduction.
                self._agree(error)
                raise
            self._reduce(self._agree(None))
            return losses

        return reduced

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        """Inside, each backward pass adds its gradient to the buckets; `.grad` stays None."""
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
        """Add the gradient of one micro-batch to its bucket, and free it."""
        assert parameter.grad is not None
        self._sums[parameter].add_(parameter.grad)
        parameter.grad = None
        self._arrived.add(parameter)

    def _reduce(self, used: Collection[nn.Parameter]) -> None:
        """Set `.grad` of the parameters `used` to the mean over the ranks, in the parameter's type.

        The others keep None, which an optimizer skips: with zeros AdamW would decay them.
        """
        for bucket in self.buckets if self.ranks.world_size > 1 else ():
            # The mean, as DDP has it: forward_backward multiplies the loss by the world size.
            bucket.div_(self.ranks.world_size)
        self.ranks.add_up(self.buckets)
        for parameter in self.parameters:
            if parameter in used:
                parameter.grad = self._sums[parameter].to(parameter.dtype)

    def _agree(self, error: Exception | None) -> Collection[nn.Parameter]:
        """The parameters that got a gradient on any rank, by one message before the reduction.

        `error`: what this rank's part of the gradient raised.
        """
        # By the same message: an expert that only one rank used is then updated on all ranks, and
        # one that no rank used keeps None.
        has_gradient = [float(parameter in self._arrived) for parameter in self.parameters]
        counts = agree(self.ranks, error, has_gradient)
        return {p for p, count in zip(self.parameters, counts, strict=True) if count}


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """In order: parameters of one type and device, at most BUCKET_ELEMENTS unless one is larger."""
    groups: list[list[nn.Parameter]] = []
    for parameter in parameters:
        if groups and _fits(parameter, groups[-1]):
            groups[-1].append(parameter)
        else:
            groups.append([parameter])
    return groups


def _fits(parameter: nn.Parameter, group: Sequence[nn.Parameter]) -> bool:
    first = group[0]
    if (first.dtype, first.device) != (parameter.dtype, parameter.device):
        return False
    elements = sum(member.numel() for member in group)
    return elements + parameter.numel() <= BUCKET_ELEMENTS
