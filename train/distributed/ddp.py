"""torch's DistributedDataParallel, as `learner.parallel`."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed.accelerator import Unsupported
from train.distributed.bucket_order import BucketOrder, fix_buckets, zero_loss
from train.distributed.failures import agree
from train.distributed.flat_buckets import ComputeGradient
from train.distributed.ranks import Ranks
from train.distributed.replicated import Replicated
from train.errors import UserError, some


class NotReduced(UserError):
    """A parameter got no gradient in a micro-batch in which DDP reduces the gradients of all."""


class Ddp(Replicated):
    """torch's DistributedDataParallel: reduces in buckets while the last backward pass is still
    under way.
    """

    model: DistributedDataParallel

    # The buckets hold the gradients, which are views of them: cleared in place they lie in memory
    # once. Freed, the micro-steps under no_sync would write new ones beside the buckets. A zero is
    # not None to an optimizer, but here every trained parameter gets a gradient in each step, or
    # the run ends.
    frees_gradients = False

    def __init__(self, model: DistributedDataParallel, ranks: Ranks, order: Sequence[str]) -> None:
        super().__init__(model, ranks)
        # Each rank keeps its own buffers: to bring them together in every forward would be a second
        # collective per step. (Not an argument: torch 2.13 would warn, and accelerate does not know
        # the new name.)
        model.broadcast_buffers = False
        if model.static_graph:
            # With no_sync it ends in an internal assertion of torch (2.13; accelerate issue 3679).
            # No key of ours sets it.
            raise Unsupported(
                "DDP's static_graph=True does not work with several micro-steps per step. Take it "
                "out of the DistributedDataParallelKwargs in train/distributed/accelerator.py"
            )
        trained = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
        self._trained = dict(trained)
        self._rank = ranks.rank
        self._order = BucketOrder(list(self._trained), order)
        self._buckets_are_fixed = False
        self._failure: NotReduced | None = None
        self._late_steps = 0
        self._ranks = ranks
        self.state = self._order

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function. Where a gradient is missing, the reduction is completed, and `check`
        raises from then on.

        The ranks are brought to the same error by their next agreement: no message of its own is
        sent at each step.
        """
        if not self._buckets_are_fixed:  # not before: a checkpoint may say in which order
            fix_buckets(self.model, [self._trained[name] for name in self._order.names])
            self._buckets_are_fixed = True

        def completed(learner: Any, window: Any) -> Tensor:
            if self._late_steps:
                losses, missing = self._reduced_late(compute_gradient, learner, window)
                self._late_steps -= 1
                self._miss(missing, window.k)
                return losses
            losses = compute_gradient(learner, window)
            try:
                # Documented for this use; asks a flag, about 1 us. DDP itself asks in the next
                # forward pass, after the optimizer has used the gradients.
                self.model._check_reducer_finalized()
            except RuntimeError as error:
                self._complete(error, window.k)
            return losses

        return completed

    def extra(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        return lambda learner, window: self._reduced_late(compute_gradient, learner, window)[0]

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def reduce_late(self, steps: int) -> None:
        self._late_steps = steps

    def _reduced_late(
        self, compute_gradient: ComputeGradient, learner: Any, window: Any
    ) -> tuple[Tensor, Sequence[str]]:
        """As DDP reduces: the same buckets, of which `.grad` are views, divided first and then
        added up.

        Gives the losses, and the parameters that got no gradient.
        """
        arrived: set[nn.Parameter] = set()
        hooks = [p.register_post_accumulate_grad_hook(arrived.add) for p in self._trained.values()]
        error: Exception | None = None
        try:
            # the loop's own, inside, comes back to this one
            with learner.accelerator.no_sync(self.model):
                losses = compute_gradient(learner, window)
        except Exception as raised:
            error = raised
        finally:
            for hook in hooks:
                hook.remove()
        try:
            agree(self._ranks, error)
        finally:
            del error  # its frames, this one among them, hold what did not fit
        buckets = {
            p.grad.untyped_storage().data_ptr(): p.grad
            for p in self._trained.values()
            if p.grad is not None
        }
        flat = [
            torch.empty(0, dtype=g.dtype, device=g.device).set_(g.untyped_storage())
            for g in buckets.values()
        ]
        for bucket in flat:
            bucket.div_(self._ranks.world_size)
        self._ranks.add_up(flat)
        return losses, [name for name, p in self._trained.items() if p not in arrived]

    def _complete(self, error: RuntimeError, k: int) -> None:
        """Hand in the gradients that the other ranks wait for: this rank has 0 to add to them."""
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if not found:
            raise error
        names = list(self._trained)
        missing = [names[int(index)] for index in found[1].split()]
        zero_loss([self._trained[name] for name in missing]).backward()
        self._miss(missing, k)

    def _miss(self, missing: Sequence[str], k: int) -> None:
        if missing and self._failure is None:
            self._failure = NotReduced(
                f"step {k}: {some(missing)} got no gradient in the last micro-batch of rank "
                f"{self._rank} (a branch that was not taken, an expert without tokens?), and DDP "
                "reduces those of all parameters or none. Nothing was saved since the last "
                "checkpoint. Type the same command with: runtime.reduction=explicit"
            )


def wrapped(module: nn.Module, accelerator: Accelerator) -> DistributedDataParallel:
    """As accelerate's prepare_model does, which would put the module under autocast a
    second time.
    """
    device = accelerator.device
    handler = accelerator.ddp_handler
    model = DistributedDataParallel(
        module, device_ids=None if device.type == "cpu" else [device.index], **handler.to_kwargs()
    )
    handler.register_comm_hook(model)
    return model
