"""Stops before an update that would let the ranks drift apart. With one rank there is nothing to watch."""

import re

import torch
from torch.nn.parallel import DistributedDataParallel

from train.ranks import Ranks
from train.step import ComputeGradient, Learner
from train.window import Window

EVERY_STEPS = 100  # and the first: what is wrong with a model shows there


class NotReduced(RuntimeError):
    """A parameter took no part in the reduction, so its gradient is this rank's alone."""


class RanksDisagree(RuntimeError):
    """After the reduction, the ranks hold different gradients."""


def guarded(compute_gradient: ComputeGradient, ranks: Ranks) -> ComputeGradient:
    """The same function; afterwards the reduction is checked at each step, the gradients of all ranks at some."""
    if ranks.world_size == 1:
        return compute_gradient

    def checked(learner: Learner, window: Window) -> torch.Tensor:
        losses = compute_gradient(learner, window)
        _check_reduction(learner, window.k)
        if window.k == 1 or window.k % EVERY_STEPS == 0:
            _check_agreement(learner, window.k, ranks)
        return losses

    return checked


def _check_reduction(learner: Learner, k: int) -> None:
    missing, where = _not_reduced(learner)
    if missing:
        raise NotReduced(
            f"step {k}: {', '.join(missing)} took no part in {where} of a rank, so the gradient was not "
            f"reduced. Each micro-batch must use every trained parameter: add 0 * parameter.sum() to the loss where a "
            f"branch is not taken, or freeze what is never used"
        )


def _not_reduced(learner: Learner) -> tuple[list[str], str]:
    """(parameters without a reduced gradient, where they were missing).

    DDP finds out by itself, but only in the next forward pass, after the optimizer has used the gradients.
    """
    if not isinstance(learner.model, DistributedDataParallel):  # train/reduction.py has reduced
        named = learner.module.named_parameters()
        return [name for name, p in named if p.requires_grad and p.grad is None], "any micro-batch"
    try:
        learner.model._check_reducer_finalized()  # documented for this use; asks a flag, about 1 us
    except RuntimeError as error:
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if not found:
            raise
        names = [name for name, p in learner.module.named_parameters() if p.requires_grad]
        return [names[int(index)] for index in found[1].split()], "the last micro-batch"
    return [], ""


def _check_agreement(learner: Learner, k: int, ranks: Ranks) -> None:
    """Compares the norm of each gradient, bit by bit; the host waits for the device here."""
    named = [(n, p.grad) for n, p in learner.module.named_parameters() if p.requires_grad and p.grad is not None]
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in named])).double().cpu().numpy()
    of_ranks = [other.view("uint64") for other in ranks.gather(norms)]  # as bits: NaN equals NaN
    apart = [rank for rank, bits in enumerate(of_ranks) if (bits != of_ranks[0]).any()]
    if apart:
        differing = [n for i, (n, _) in enumerate(named) if any(bits[i] != of_ranks[0][i] for bits in of_ranks)]
        raise RanksDisagree(
            f"step {k}: the gradients of rank(s) {', '.join(map(str, apart))} differ from rank 0's in "
            f"{', '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}; no update was made. Is something "
            f"changed on one rank only (a parameter, a hook, a branch that depends on the rank)?"
        )
