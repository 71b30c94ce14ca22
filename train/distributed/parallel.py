"""How the ranks share the work on one model: all that depends on the kind of parallelism, and
nothing else does.

`learner.parallel` is one of the classes below. Step, checkpoints, the comparison of ranks and
whoever computes a gradient ask it, and never which wrapper a model has. FSDP2's class is in
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
    """What a trial backward pass on the plain module has shown, the same on every rank."""

    # trained parameters, in the order in which their gradients arrived on rank 0
    order: Sequence[str]
    unused: Sequence[str]  # those that got none, on some rank or on all


class Parallel(Protocol):
    """What the rest of the package must know of the way in which ranks share the work."""

    model: Any
    """What a task calls: the module, or what is wrapped around it, whose forward arms the
    reduction.
    """

    frees_gradients: bool
    """Whether clearing a gradient frees it (None), or zeroes it in place. Passed on as
    `set_to_none`.
    """

    is_sharded: bool
    """Whether each rank holds a part of each parameter, of its gradient and of the optimizer's
    state, and a forward pass needs all ranks. Else each holds all, and may go forward alone.
    """

    writes_state: bool
    """Whether this rank writes weights and optimizer state into a checkpoint. Rank 0 alone where
    all hold the same.
    """

    state: HasState | None
    """What a checkpoint must hold for a resumed run to reduce in the same order; read before
    `around` is called.
    """

    second: Callable[[], nn.Module] | None
    """Makes another module, divided as the one that is trained, with the weights that it began
    with. None where copy.deepcopy makes one.
    """

    note: str
    """For the screen, where the user may want to know how gradients are reduced; else empty."""

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, with what is left to do after the last backward pass: `.grad` is then
        reduced.
        """
        ...

    def extra(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """As `around`, for a gradient that no update follows: it is reduced after the last backward
        pass, and what fails on one rank is raised on all, but under FSDP2.
        """
        ...

    def check(self) -> None:
        """Raises what keeps this rank from going on. Asked where all ranks agree, so that all end
        by the same error.
        """
        ...

    def reduce_late(self, steps: int) -> None:
        """Reduce the gradients of so many steps after the last backward pass of all ranks, to the
        same bits.

        Where memory runs out on one rank, the others then learn it before they wait for it, by
        ShortOfMemory.
        """
        ...

    @property
    def total_norm(self) -> Callable[[list[Tensor]], Tensor]:
        """Takes gradients, and gives the 2-norm of the whole gradient: 0-dim, on the device.

        Where each rank holds a part of it: over all ranks.
        """
        ...

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """(n,), float64, on the CPU: the 2-norm of each gradient, of which `tensors` are what this
        rank holds.
        """
        ...

    @property
    def clip(self) -> Callable[[list[Tensor], float, Tensor], object]:
        """Takes (gradients, max_norm, norm), the norm being theirs: scales them so that it is at
        most `max_norm`.
        """
        ...


class ExplicitReduction(Replicated):
    """No wrapper: gradients are summed in flat buckets of float32 and reduced after the last
    backward pass.

    A parameter that gets a gradient on no rank keeps None, which an optimizer leaves alone.
    """

    def __init__(self, model: Any, ranks: Ranks, note: str) -> None:
        super().__init__(model, ranks)
        self.note = note
        # As DDP does: rank 0's weights are those of all.
        ranks.copy_from_main([t.detach() for t in (*model.parameters(), *model.buffers())])
        self._buckets = FlatBuckets([p for p in model.parameters() if p.requires_grad], ranks)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return self._buckets.around(compute_gradient)

    extra = around


def place(module: nn.Module, accelerator: Accelerator, moves: bool = True) -> nn.Module:
    """The module on its device, under the autocast of the precision: not shared among the ranks
    yet.

    `moves`: False leaves it where it is.
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
    """The placed module as this run's ranks work on it together.

    `dtype`: of its parameters; `reduction`: see runtime.reduction.
    """
    # Gradients of parameters narrower than float32 must be summed in a wider type, which DDP
    # cannot.
    is_narrow = torch.promote_types(dtype, torch.float32) != dtype
    if ranks.world_size == 1 and not is_narrow:
        return Replicated(module, ranks)
    if is_narrow or reduction == "explicit":
        return ExplicitReduction(module, ranks, "")
    if tried.unused:
        note = (
            "reduction after the last micro-batch, not during it: no gradient on some rank for "
            f"{some(tried.unused)}"
        )
        return ExplicitReduction(module, ranks, note)
    return Ddp(wrapped(module, accelerator), ranks, tried.order)
