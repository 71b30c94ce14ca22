"""A further gradient of a step, while that of the training is set aside and then put back."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from train.batch.window import Window
from train.distributed.sharded import as_part, is_part, local
from train.exactness.reference_gradient import gradients_or_zeros
from train.step import Learner, forward_backward

Gradients = Sequence[Tensor | None]
"""By trained parameter: what this rank holds of it; None where it has no gradient."""


def accumulate_gradient(
    learner: Learner, window: Window, after_micro_batch: Callable[[], None] = lambda: None
) -> Tensor:
    """As the accumulation loop does: into `.grad`, reduced by the last backward pass.

    Under `learner.parallel.extra` it is reduced over the ranks whatever their wrapper. Where
    micro-batches are slow, `after_micro_batch` shows the watchdog that they make progress.
    """
    count = len(window.micro_batches)
    losses = torch.zeros(len(window.weights), device=learner.device)
    for i, micro_batch in enumerate(window.micro_batches):
        is_last = i + 1 == count
        # Reduced once, as in a step: DDP would reduce, and wait for all ranks, in each backward
        # pass.
        with nullcontext() if is_last else learner.accelerator.no_sync(learner.model):
            losses = losses + forward_backward(learner, micro_batch, window)
        after_micro_batch()
    return losses


@contextmanager
def gradients_set_aside(learner: Learner) -> Iterator[list[Tensor | None]]:
    """The gradients in `.grad`, on the host, while others are computed in their place."""
    saved: list[Tensor | None] = []
    for p in learner.parameters:
        if p.grad is None:
            saved.append(None)
        else:
            # Copied on a CPU too: a gradient may be a view of a bucket of DDP, into which the next
            # one is added up.
            saved.append(local(p.grad).detach().to("cpu", copy=True))
    try:
        # Before the context is entered: what is computed inside would be added to the step's
        # gradient.
        clear_gradients(learner)
        yield saved
    finally:
        _put_back(learner, saved)


def clear_gradients(learner: Learner) -> None:
    """As the step does."""
    learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)


def _put_back(learner: Learner, saved: Gradients) -> None:
    with torch.no_grad():
        for p, gradient in zip(learner.parameters, saved, strict=True):
            if gradient is None:
                p.grad = None
            elif not learner.parallel.frees_gradients and p.grad is not None:
                p.grad.copy_(gradient)  # a view of a bucket of DDP: it has to stay one
            else:
                on_device = gradient.to(p.device)
                p.grad = as_part(on_device, p) if is_part(p) else on_device


def current_gradients(learner: Learner) -> list[Tensor]:
    """What stands in `.grad` now; zeros where there is none."""
    with torch.no_grad():
        return gradients_or_zeros(learner.parameters)


def zeros_for_missing(learner: Learner, saved: Gradients) -> list[Tensor]:
    """Gradients that were set aside; zeros where there was none."""
    filled = []
    for p, gradient in zip(learner.parameters, saved, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(local(p.detach()), device="cpu")
        filled.append(gradient)
    return filled


def uncompiled() -> AbstractContextManager[object]:
    """Inside, compiled code runs as it is written."""
    # Not imported: nothing was compiled, and the import would take seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
