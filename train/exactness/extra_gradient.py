"""The gradient of a step beside that of the training, which is put aside meanwhile, and put back to
the bit.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from train.batch.window import Window
from train.distributed.sharded import as_part, is_part, local
from train.step import Learner, forward_backward

Gradients = Sequence[Tensor | None]
"""By trained parameter: what this rank holds of it."""


def accumulated(
    learner: Learner, window: Window, beat: Callable[[], None] = lambda: None
) -> Tensor:
    """As the loop computes it: `.grad`, by `learner.parallel.extra` reduced over the ranks.

    `beat` is called after each micro-batch: where they are slow, the watchdog sees that they go on.
    """
    count = len(window.micro_batches)
    losses = torch.zeros(len(window.weights), device=learner.device)
    for i, micro_batch in enumerate(window.micro_batches):
        with learner.accelerator.no_sync(learner.model) if i + 1 < count else nullcontext():
            losses = losses + forward_backward(learner, micro_batch, window)
        beat()
    return losses


@contextmanager
def put_aside(learner: Learner) -> Iterator[list[Tensor | None]]:
    """What stands in `.grad`, on the host, while others are computed in its place."""
    # Copied on a CPU too: a gradient may be a view of a bucket, into which the next one is added
    # up.
    kept = [
        None if p.grad is None else local(p.grad).detach().to("cpu", copy=True)
        for p in learner.parameters
    ]
    try:
        clear(learner)
        yield kept
    finally:
        _put_back(learner, kept)


def clear(learner: Learner) -> None:
    """As the step does."""
    learner.optimizer.zero_grad(set_to_none=learner.parallel.frees_gradients)


def _put_back(learner: Learner, kept: Gradients) -> None:
    with torch.no_grad():
        for p, gradient in zip(learner.parameters, kept, strict=True):
            if gradient is None:
                p.grad = None
            elif not learner.parallel.frees_gradients and p.grad is not None:
                p.grad.copy_(gradient)  # a view of a bucket of DDP
            else:
                own = gradient.to(p.device)
                p.grad = as_part(own, p) if is_part(p) else own


def gradients(learner: Learner) -> list[Tensor]:
    """What stands in `.grad` now; zeros for what is not there."""
    with torch.no_grad():
        return [
            local(torch.zeros_like(p) if p.grad is None else p.grad) for p in learner.parameters
        ]


def filled(learner: Learner, kept: Gradients) -> list[Tensor]:
    """The same, of what was put aside."""
    found = []
    for p, gradient in zip(learner.parameters, kept, strict=True):
        found.append(
            torch.zeros_like(local(p.detach()), device="cpu") if gradient is None else gradient
        )
    return found


def uncompiled() -> AbstractContextManager[object]:
    """Inside, what is compiled runs as it is written: other sizes would be compiled anew."""
    # nobody has compiled anything, and the import takes seconds
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
