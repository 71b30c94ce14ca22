"""How the ranks share the work on one model: all that depends on the kind of parallelism, and nothing else does.

`learner.parallel` is one of the classes below. Step, checkpoints, the comparison of ranks and whoever computes a
gradient ask it, and never which wrapper a model has. Another kind, such as FSDP2, is one more class here and one more
line in `parallelize`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed.accelerator import Unsupported
from train.distributed.flat_buckets import ComputeGradient, FlatBuckets
from train.distributed.ranks import Ranks


class Parallel(Protocol):
    """What the rest of the package must know of the way in which ranks share the work."""

    model: Any
    """What a task calls: the module, or what is wrapped around it, whose forward arms the reduction."""

    frees_gradients: bool
    """Whether clearing a gradient frees it (None), or zeroes it in place. Passed on as `set_to_none`."""

    writes_state: bool
    """Whether this rank writes weights and optimizer state into a checkpoint. Rank 0 alone where all hold the same."""

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, with what is left to do after the last backward pass: `.grad` is then reduced."""
        ...

    def unreduced(self) -> list[str]:
        """Names of parameters that took no part in the reduction just made: their gradient is this rank's alone."""
        ...

    @property
    def total_norm(self) -> Callable[[list[Tensor]], Tensor]:
        """Takes gradients, and gives the 2-norm of the whole gradient: 0-dim, on the device.

        Where each rank holds a part of it: over all ranks.
        """
        ...

    @property
    def clip(self) -> Callable[[Sequence[nn.Parameter], float, Tensor], object]:
        """Takes (parameters, max_norm, total_norm): scales their gradients so that their norm is at most `max_norm`."""
        ...


NARROW = (torch.bfloat16, torch.float16)


def _norm(gradients: list[Tensor]) -> Tensor:
    """What torch.nn.utils.get_total_norm gives, bit for bit, where all gradients are on one device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _norm_of_narrow(gradients: list[Tensor]) -> Tensor:
    """In float32. torch's own is a number of bf16, up to 4e-3 off, and the coefficient of a clip with it.

    Squares are added up in float64: on a CPU, torch 2.13 adds float32 one after the other (1e-5 off at 300,000).
    """
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64  # which MPS does not have
    parts = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    norms = torch._foreach_norm(parts, 2.0, wide)
    return torch.linalg.vector_norm(torch.stack(norms)).float()


class Replicated:
    """Every rank holds all weights, gradients and optimizer state. Also the one process that has no other ranks."""

    frees_gradients = True

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model = model
        self.writes_state = ranks.is_main
        is_narrow = any(parameter.dtype in NARROW for parameter in model.parameters())
        self.total_norm = _norm_of_narrow if is_narrow else _norm

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return compute_gradient

    def unreduced(self) -> list[str]:
        return []

    # As it is: nothing stands between, at each step.
    clip = staticmethod(torch.nn.utils.clip_grads_with_norm_)


class Ddp(Replicated):
    """torch's DistributedDataParallel: reduces in buckets while the last backward pass is still under way."""

    model: DistributedDataParallel

    def __init__(self, model: DistributedDataParallel, ranks: Ranks) -> None:
        super().__init__(model, ranks)
        # Buffers are brought together before an evaluation or a save, not in every forward: that would be a second
        # collective per step. (Not an argument: torch 2.13 would warn, and accelerate does not know the new name.)
        model.broadcast_buffers = False
        if model.static_graph:
            # With no_sync it ends in an internal assertion of torch (2.13; accelerate issue 3679). No key of ours sets
            # it.
            raise Unsupported(
                "DDP's static_graph=True does not work with several micro-steps per step. Take it out of the "
                "DistributedDataParallelKwargs in train/distributed/accelerator.py"
            )

    def unreduced(self) -> list[str]:
        """DDP finds out by itself, but only in the next forward pass, after the optimizer has used the gradients."""
        try:
            self.model._check_reducer_finalized()  # documented for this use; asks a flag, about 1 us
        except RuntimeError as error:
            found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
            if not found:
                raise
            names = [name for name, p in self.model.module.named_parameters() if p.requires_grad]
            return [names[int(index)] for index in found[1].split()]
        return []


class ExplicitReduction(Replicated):
    """No wrapper: gradients are summed in flat buckets of float32 and reduced after the last backward pass."""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        super().__init__(model, ranks)
        # As DDP does: rank 0's weights are those of all.
        ranks.copy_from_main([t.detach() for t in (*model.parameters(), *model.buffers())])
        self._buckets = FlatBuckets([p for p in model.parameters() if p.requires_grad], ranks)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return self._buckets.around(compute_gradient)


def parallelize(module: nn.Module, accelerator: Accelerator, ranks: Ranks, dtype: torch.dtype) -> Parallel:
    """The module as this run's ranks work on it together; `dtype`: of its parameters."""
    if isinstance(module, DistributedDataParallel):
        raise Unsupported(
            f"model.target returns a model inside DDP ({type(module.module).__name__}): return the plain one; "
            f"it is wrapped here"
        )
    # Gradients of parameters narrower than float32 must be summed in a wider type, which DDP cannot. "For evaluation"
    # is accelerate's word for a model without DDP.
    is_narrow = torch.promote_types(dtype, torch.float32) != dtype
    model = accelerator.prepare_model(module, evaluation_mode=is_narrow)
    if is_narrow:
        return ExplicitReduction(model, ranks)
    if isinstance(model, DistributedDataParallel):
        return Ddp(model, ranks)
    return Replicated(model, ranks)
