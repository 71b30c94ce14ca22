"""All that depends on the kind of parallelism: DDP, FSDP2, explicit reduction or one process.

`learner.parallel` implements Parallel. The step, checkpoints, the comparison of ranks and all that
compute a gradient use it, and never look at the wrapper of a model. FSDP2's class is in
train/distributed/sharded.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed.accelerator import Unsupported
from train.distributed.ddp import Ddp, wrapped
from train.distributed.flat_buckets import ComputeGradient, FlatBuckets
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.errors import some
from train.parts import HasState


@dataclass(frozen=True)
class Tried:
    """The result of a trial backward pass on the plain module, the same on every rank."""

    order: Sequence[str]
    """Trained parameters, in the order in which their gradients arrived on rank 0."""
    unused: Sequence[str]
    """Those that got no gradient on at least one rank."""


class Parallel(Protocol):
    """What the rest of the package needs to know of the parallelism."""

    model: Any
    """What a task calls: the module or its wrapper, whose forward prepares the reduction."""

    frees_gradients: bool
    """The `set_to_none` of zero_grad: whether gradients are freed, or zeroed in place."""

    is_sharded: bool
    """Whether each rank holds a shard of each parameter, its gradient and its optimizer state.

    Then a forward pass needs all ranks; else a rank may run one alone.
    """

    writes_state: bool
    """Whether this rank writes weights and optimizer state into a checkpoint.

    Rank 0 only, where all hold the same.
    """

    state: HasState | None
    """For checkpoints: what a resumed run needs to reduce in the same order.

    Restored before `around` is called.
    """

    second: Callable[[], nn.Module] | None
    """Makes a second module, sharded as the trained one, with its initial weights.

    None where copy.deepcopy works.
    """

    note: str
    """Printed at the start, where the user may want to know how gradients are reduced."""

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, and what must follow the last backward pass: `.grad` is reduced."""
        ...

    def extra(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """As `around`, for a gradient that is not applied.

        It is reduced after the last backward pass, and an error of one rank is raised on all,
        except under FSDP2.
        """
        ...

    def check(self) -> None:
        """Raise the error of an earlier step. Called where ranks agree, so that all raise it."""
        ...

    def reduce_late(self, steps: int) -> None:
        """For so many steps, reduce after the last backward pass of all ranks, to the same bits.

        Where one rank runs out of memory, the others then raise ShortOfMemory in place of waiting
        for it in the reduction.
        """
        ...

    @property
    def total_norm(self) -> Callable[[list[Tensor]], Tensor]:
        """A function of gradients: their total 2-norm, over all ranks; 0-dim, on the device."""
        ...

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """(n,), float64, on the CPU: the 2-norm of each gradient. `tensors`: this rank's shards."""
        ...

    @property
    def clip(self) -> Callable[[list[Tensor], float, Tensor], object]:
        """A function of (gradients, max_norm, norm): scales them in place to at most `max_norm`."""
        ...


class ExplicitReduction(Replicated):
    """No wrapper: gradients are summed in float32 buckets, reduced after the last backward pass.

    A parameter without gradient on all ranks keeps None, which an optimizer skips.
    """

    def __init__(self, model: Any, ranks: Ranks, note: str) -> None:
        super().__init__(model, ranks)
        self.note = note
        # As DDP does: all ranks start with rank 0's weights.
        ranks.copy_from_main([t.detach() for t in (*model.parameters(), *model.buffers())])
        self._buckets = FlatBuckets([p for p in model.parameters() if p.requires_grad], ranks)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return self._buckets.around(compute_gradient)

    extra = around


def place(module: nn.Module, accelerator: Accelerator, moves: bool = True) -> nn.Module:
    """The module on its device, under the precision's autocast, not yet parallel.

    `moves`: False leaves it on its device.
    """
    if isinstance(module, DistributedDataParallel):
        raise Unsupported(
            f"model.target returns a model inside DDP ({type(module.module).__name__}): return the "
            "plain one; it is wrapped here"
        )
    # "For evaluation" is accelerate's word for a model without DDP.
    placed: nn.Module = accelerator.prepare_model(
        module, device_placement=moves, evaluation_mode=True
    )
    return placed


def parallelize(
    module: nn.Module,
    accelerator: Accelerator,
    ranks: Ranks,
    dtype: torch.dtype,
    reduction: str,
    tried: Tried,
) -> Parallel:
    """`learner.parallel` for a module that `place` returned.

    `dtype`: of its parameters; `reduction`: see runtime.reduction.
    """
    # Gradients of parameters narrower than float32 must be summed in a wider type, which DDP does
    # not support.
    is_narrow = torch.promote_types(dtype, torch.float32) != dtype
    # One rank reduces nothing. Narrow gradients still need wider sums, over its micro-batches.
    if ranks.world_size == 1 and not is_narrow:
        return Replicated(module, ranks)
    if is_narrow or reduction == "explicit":
        return ExplicitReduction(module, ranks, "")
    # DDP reduces the gradients of all parameters or none. A rank that lacks one would leave the
    # others waiting at step 1.
    if tried.unused:
        note = (
            "reduction after the last micro-batch, not during it: no gradient on some rank for "
            f"{some(tried.unused)}"
        )
        return ExplicitReduction(module, ranks, note)
    return Ddp(wrapped(module, accelerator), ranks, tried.order)
