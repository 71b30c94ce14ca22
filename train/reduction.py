"""The gradient of a step, summed in float32 or wider and reduced explicitly, where DDP cannot reduce it.

DDP reduces a gradient while the last micro-batch is in its backward pass, as `.grad` then stands: for parameters in
bf16 a sum in bf16, which at 256 micro-batches is off by more than 1e-2. Here every micro-batch runs under no_sync, its
gradients are added to flat buffers as they arrive, and the buffers are reduced once per step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.ranks import Ranks
from train.step import ComputeGradient, Learner
from train.window import Window

BUCKET_ELEMENTS = 2**23  # 32 MiB of float32: what one message to the other ranks holds


def reduced(compute_gradient: ComputeGradient, learner: Learner, ranks: Ranks) -> ComputeGradient:
    """The same function where DDP reduces right; for parameters narrower than float32, with an explicit reduction.

    The model has no DDP around it then, so rank 0's weights are copied to all ranks here, as DDP would do.
    """
    if not is_explicit(learner.dtype):
        return compute_gradient
    ranks.copy_from_main([tensor.detach() for tensor in (*learner.module.parameters(), *learner.module.buffers())])
    return Reduction(learner.parameters, ranks).around(compute_gradient)


def is_explicit(dtype: torch.dtype) -> bool:
    """Whether gradients of parameters of this type must be summed in a wider one."""
    return torch.promote_types(dtype, torch.float32) != dtype


class Reduction:
    """Sums of gradients in flat buffers; each parameter's is a view."""

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self.parameters = parameters
        self.ranks = ranks
        self.buckets: list[Tensor] = []
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._arrived: set[nn.Parameter] = set()
        for group in _groups(parameters):
            sizes = [p.numel() for p in group]
            wide = torch.promote_types(group[0].dtype, torch.float32)
            bucket = torch.zeros(sum(sizes), dtype=wide, device=group[0].device)
            self.buckets.append(bucket)
            self._sums |= {p: part.view(p.shape) for p, part in zip(group, bucket.split(sizes), strict=True)}

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function; `.grad` gets the mean over the ranks of the sum, in the parameter's own type."""

        def summed(learner: Learner, window: Window) -> Tensor:
            for bucket in self.buckets:
                bucket.zero_()
            self._arrived.clear()
            hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self.parameters]
            try:
                with learner.accelerator.no_sync(learner.model):  # the loop's own, inside, comes back to this one
                    losses = compute_gradient(learner, window)
            finally:
                for hook in hooks:
                    hook.remove()
            self._reduce()
            return losses

        return summed

    def _take(self, parameter: nn.Parameter) -> None:
        """The gradient of one micro-batch is added up and let go of."""
        assert parameter.grad is not None
        self._sums[parameter].add_(parameter.grad)
        parameter.grad = None
        self._arrived.add(parameter)

    def _reduce(self) -> None:
        for bucket in self.buckets if self.ranks.world_size > 1 else ():
            bucket.div_(self.ranks.world_size)  # the mean, as DDP has it: the step's factor R counts on it
        self.ranks.add_up(self.buckets)
        for parameter in self.parameters:
            if parameter in self._arrived:  # else None, as without this: the guard names it
                parameter.grad = self._sums[parameter].to(parameter.dtype)


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one type and device, in order, up to BUCKET_ELEMENTS together; a larger one by itself."""
    groups: list[list[nn.Parameter]] = []
    for p in parameters:
        last = groups[-1] if groups else []
        alike = last and (last[0].dtype, last[0].device) == (p.dtype, p.device)
        if alike and sum(other.numel() for other in last) + p.numel() <= BUCKET_ELEMENTS:
            last.append(p)
        else:
            groups.append([p])
    return groups
