"""How the ranks share the work on one model: all that depends on the kind of parallelism, and nothing else does.

`learner.parallel` is one of the classes below. Step, checkpoints, the comparison of ranks and whoever computes a
gradient ask it, and never which wrapper a model has. FSDP2's class is in train/distributed/sharded.py.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed.accelerator import Unsupported
from train.distributed.bucket_order import BucketOrder, fix_buckets, zero_loss
from train.distributed.flat_buckets import ComputeGradient, FlatBuckets
from train.distributed.norms import norm_for
from train.distributed.ranks import Ranks
from train.errors import UserError, some
from train.parts import HasState


class NotReduced(UserError):
    """A parameter got no gradient in a micro-batch in which DDP reduces the gradients of all."""


@dataclass(frozen=True)
class Tried:
    """What a trial backward pass on the plain module has shown, the same on every rank."""

    order: Sequence[str]  # trained parameters, in the order in which their gradients arrived on rank 0
    unused: Sequence[str]  # those that got none, on some rank or on all


class Parallel(Protocol):
    """What the rest of the package must know of the way in which ranks share the work."""

    model: Any
    """What a task calls: the module, or what is wrapped around it, whose forward arms the reduction."""

    frees_gradients: bool
    """Whether clearing a gradient frees it (None), or zeroes it in place. Passed on as `set_to_none`."""

    is_sharded: bool
    """Whether each rank holds a part of each parameter, of its gradient and of the optimizer's state, and a forward
    pass needs all ranks. Else each holds all, and may go forward alone."""

    writes_state: bool
    """Whether this rank writes weights and optimizer state into a checkpoint. Rank 0 alone where all hold the same."""

    state: HasState | None
    """What a checkpoint must hold for a resumed run to reduce in the same order; read before `around` is called."""

    second: Callable[[], nn.Module] | None
    """Makes another module, divided as the one that is trained, with the weights that it began with. None where
    copy.deepcopy makes one."""

    note: str
    """For the screen, where the user may want to know how gradients are reduced; else empty."""

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, with what is left to do after the last backward pass: `.grad` is then reduced."""
        ...

    def check(self) -> None:
        """Raises what keeps this rank from going on. Asked where all ranks agree, so that all end by the same error."""
        ...

    @property
    def total_norm(self) -> Callable[[list[Tensor]], Tensor]:
        """Takes gradients, and gives the 2-norm of the whole gradient: 0-dim, on the device.

        Where each rank holds a part of it: over all ranks.
        """
        ...

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        """(n,), float64, on the CPU: the 2-norm of each gradient, of which `tensors` are what this rank holds."""
        ...

    @property
    def clip(self) -> Callable[[Sequence[nn.Parameter], float, Tensor], object]:
        """Takes (parameters, max_norm, total_norm): scales their gradients so that their norm is at most `max_norm`."""
        ...


class Replicated:
    """Every rank holds all weights, gradients and optimizer state. Also the one process that has no other ranks."""

    is_sharded = False
    frees_gradients = True
    state: HasState | None = None
    second: Callable[[], nn.Module] | None = None
    note = ""

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model = model
        self.writes_state = ranks.is_main
        self.total_norm = norm_for(model)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return compute_gradient

    def check(self) -> None:
        pass

    def norms(self, tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors]).cpu()

    # As it is: nothing stands between, at each step.
    clip = staticmethod(torch.nn.utils.clip_grads_with_norm_)


class Ddp(Replicated):
    """torch's DistributedDataParallel: reduces in buckets while the last backward pass is still under way."""

    model: DistributedDataParallel

    # The buckets hold the gradients, which are views of them: cleared in place they lie in memory once. Freed, the
    # micro-steps under no_sync would write new ones beside the buckets. A zero is not None to an optimizer, but here
    # every trained parameter gets a gradient in each step, or the run ends.
    frees_gradients = False

    def __init__(self, model: DistributedDataParallel, ranks: Ranks, order: Sequence[str]) -> None:
        super().__init__(model, ranks)
        # Each rank keeps its own buffers: to bring them together in every forward would be a second collective per
        # step. (Not an argument: torch 2.13 would warn, and accelerate does not know the new name.)
        model.broadcast_buffers = False
        if model.static_graph:
            # With no_sync it ends in an internal assertion of torch (2.13; accelerate issue 3679). No key of ours sets
            # it.
            raise Unsupported(
                "DDP's static_graph=True does not work with several micro-steps per step. Take it out of the "
                "DistributedDataParallelKwargs in train/distributed/accelerator.py"
            )
        trained = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
        self._trained = dict(trained)
        self._rank = ranks.rank
        self._order = BucketOrder(list(self._trained), order)
        self._buckets_are_fixed = False
        self._failure: NotReduced | None = None
        self.state = self._order

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function. Where a gradient is missing, the reduction is completed, and `check` raises from then on.

        The ranks are brought to the same error by their next agreement: no message of its own is sent at each step.
        """
        if not self._buckets_are_fixed:  # not before: a checkpoint may say in which order
            fix_buckets(self.model, [self._trained[name] for name in self._order.names])
            self._buckets_are_fixed = True

        def completed(learner: Any, window: Any) -> Tensor:
            losses = compute_gradient(learner, window)
            try:
                # Documented for this use; asks a flag, about 1 us. DDP itself asks in the next forward pass, after the
                # optimizer has used the gradients.
                self.model._check_reducer_finalized()
            except RuntimeError as error:
                self._complete(error, window.k)
            return losses

        return completed

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _complete(self, error: RuntimeError, k: int) -> None:
        """Hand in the gradients that the other ranks wait for: this rank has 0 to add to them."""
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if not found:
            raise error
        names = list(self._trained)
        missing = [names[int(index)] for index in found[1].split()]
        zero_loss([self._trained[name] for name in missing]).backward()
        if self._failure is None:
            self._failure = NotReduced(
                f"step {k}: {some(missing)} got no gradient in the last micro-batch of rank {self._rank} (a branch "
                f"that was not taken, an expert without tokens?), and DDP reduces those of all parameters or none. "
                f"Nothing was saved since the last checkpoint. Type the same command with: runtime.reduction=explicit"
            )


class ExplicitReduction(Replicated):
    """No wrapper: gradients are summed in flat buckets of float32 and reduced after the last backward pass.

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


def place(module: nn.Module, accelerator: Accelerator, moves: bool = True) -> nn.Module:
    """The module on its device, under the autocast of the precision: not shared among the ranks yet.

    `moves`: False leaves it where it is.
    """
    if isinstance(module, DistributedDataParallel):
        raise Unsupported(
            f"model.target returns a model inside DDP ({type(module.module).__name__}): return the plain one; "
            f"it is wrapped here"
        )
    # "For evaluation" is accelerate's word for a model without DDP.
    placed: nn.Module = accelerator.prepare_model(module, device_placement=moves, evaluation_mode=True)
    return placed


def parallelize(
    module: nn.Module, accelerator: Accelerator, ranks: Ranks, dtype: torch.dtype, reduction: str, tried: Tried
) -> Parallel:
    """The placed module as this run's ranks work on it together.

    `dtype`: of its parameters; `reduction`: see runtime.reduction.
    """
    # Gradients of parameters narrower than float32 must be summed in a wider type, which DDP cannot.
    is_narrow = torch.promote_types(dtype, torch.float32) != dtype
    if ranks.world_size == 1 and not is_narrow:
        return Replicated(module, ranks)
    if is_narrow or reduction == "explicit":
        return ExplicitReduction(module, ranks, "")
    if tried.unused:
        note = f"reduction after the last micro-batch, not during it: no gradient on some rank for {some(tried.unused)}"
        return ExplicitReduction(module, ranks, note)
    return Ddp(_wrapped(module, accelerator), ranks, tried.order)


def _wrapped(module: nn.Module, accelerator: Accelerator) -> DistributedDataParallel:
    """As accelerate's prepare_model does, which would put the module under autocast a second time."""
    device = accelerator.device
    handler = accelerator.ddp_handler
    model = DistributedDataParallel(
        module, device_ids=None if device.type == "cpu" else [device.index], **handler.to_kwargs()
    )
    handler.register_comm_hook(model)
    return model
