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
    """torch's DistributedDataParallel: reduces in buckets during the last backward pass."""

    model: DistributedDataParallel

    # Gradients are views of the buckets: zeroed in place, they are in memory once. If they were
    # freed, the micro-steps under no_sync would allocate others beside the buckets. An optimizer
    # treats 0 and None differently, but here every trained parameter gets a gradient in each step,
    # or the run ends.
    frees_gradients = False

    def __init__(self, model: DistributedDataParallel, ranks: Ranks, order: Sequence[str]) -> None:
        super().__init__(model, ranks)
        # Each rank keeps its own buffers: to broadcast them in every forward would be a second
        # collective per step. Not by the argument: torch 2.13 warns of it, and accelerate does not
        # have the new name.
        model.broadcast_buffers = False
        if model.static_graph:
            # With no_sync it ends in an internal assertion of torch (2.13; accelerate issue 3679).
            # No config key sets it.
            raise Unsupported(
                "DDP's static_graph=True does not work with several micro-steps per step. Remove "
                "it from the DistributedDataParallelKwargs in train/distributed/accelerator.py"
            )
        parameters = model.module.named_parameters()
        self._trained = {name: p for name, p in parameters if p.requires_grad}
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

        All ranks raise it when they next agree: no further message is sent at each step.
        """
        if not self._buckets_are_fixed:  # only now: a checkpoint may hold the order
            fix_buckets(self.model, [self._trained[name] for name in self._order.names])
            self._buckets_are_fixed = True

        def completed(learner: Any, window: Any) -> Tensor:
            # While a size of micro-batch is unproven: a rank that runs out of memory in the last
            # backward pass would leave the others in DDP's reduction.
            if self._late_steps:
                losses, missing = self._reduced_late(compute_gradient, learner, window)
                self._late_steps -= 1
                self._miss(missing, window.k)
                return losses
            losses = compute_gradient(learner, window)
            try:
                # Documented for this use; reads a flag, about 1 us. DDP itself does so in the next
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
        """Reduce after the last backward pass, to the same bits as DDP.

        It uses DDP's buckets, of which `.grad` are views. Returns the losses and the names of
        parameters without a gradient.
        """
        # By hooks, since `.grad` does not tell: it is zeroed in place, and 0 for a parameter that
        # got no gradient, too.
        arrived: set[nn.Parameter] = set()
        hooks = [p.register_post_accumulate_grad_hook(arrived.add) for p in self._trained.values()]
        error: Exception | None = None
        try:
            # The loop's own no_sync, inside, restores this one.
            with learner.accelerator.no_sync(self.model):
                losses = compute_gradient(learner, window)
        except Exception as raised:
            error = raised
        finally:
            for hook in hooks:
                hook.remove()
        # Before the reduction, in which the others would wait for a rank that has failed.
        try:
            agree(self._ranks, error)
        finally:
            del error  # its frames, this one among them, hold what did not fit in memory
        buckets = self._buckets()
        # Divided first, then summed, as DDP does: in the other order the bits would differ.
        for bucket in buckets:
            bucket.div_(self._ranks.world_size)
        self._ranks.add_up(buckets)
        return losses, [name for name, p in self._trained.items() if p not in arrived]

    def _buckets(self) -> list[Tensor]:
        """DDP's buckets, flat: the storages of the gradients."""
        # Each bucket once: its gradients are views of one storage.
        gradients: dict[int, Tensor] = {}
        for parameter in self._trained.values():
            if parameter.grad is not None:
                gradients[parameter.grad.untyped_storage().data_ptr()] = parameter.grad
        buckets = []
        for gradient in gradients.values():
            flat = torch.empty(0, dtype=gradient.dtype, device=gradient.device)
            buckets.append(flat.set_(gradient.untyped_storage()))
        return buckets

    def _complete(self, error: RuntimeError, k: int) -> None:
        """Give 0 for the missing gradients, so that the other ranks' reduction ends."""
        # Which gradients are missing stands in torch's message alone. Any other message is about
        # something else.
        match = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if not match:
            raise error
        names = list(self._trained)
        missing = [names[int(index)] for index in match[1].split()]
        # A backward pass over these alone calls the hooks that DDP still waits for: its reduction
        # ends, here and on the other ranks.
        zero_loss([self._trained[name] for name in missing]).backward()
        self._miss(missing, k)

    def _miss(self, missing: Sequence[str], k: int) -> None:
        if missing and self._failure is None:
            self._failure = NotReduced(
                f"step {k}: {some(missing)} got no gradient in the last micro-batch of rank "
                f"{self._rank} (a branch that was not taken, an expert without tokens?), and DDP "
                "reduces those of all parameters or none. Nothing was saved since the last "
                "checkpoint. Run the same command with: runtime.reduction=explicit"
            )


def wrapped(module: nn.Module, accelerator: Accelerator) -> DistributedDataParallel:
    """As accelerate's prepare_model, which would wrap the module in autocast a second time."""
    device = accelerator.device
    device_ids = None if device.type == "cpu" else [device.index]
    handler = accelerator.ddp_handler
    model = DistributedDataParallel(module, device_ids=device_ids, **handler.to_kwargs())
    handler.register_comm_hook(model)
    return model
