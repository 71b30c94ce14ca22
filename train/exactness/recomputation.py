"""Draws inside of a block under activation checkpointing: both of its forwards must draw the same.

The block's forward runs a second time in the backward pass. torch restores its own generators for
that, not Python's and NumPy's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.batch.window import Batch
from train.errors import UserError
from train.exactness.reference_gradient import halve_until_it_fits, loss_sums, widest_forward
from train.models.preserve_state import preserve_state
from train.randomness import Generators
from train.step import Learner

RESTORED_BY_TORCH = "torch's"
"""How the names of the generators begin that torch restores for the second forward."""


class DrawsTwice(UserError):
    """A block under activation checkpointing draws from a generator that torch does not restore."""


def check_recomputation(learner: Learner, batch: Batch) -> None:
    """Raises DrawsTwice where a backward pass over `batch` (on the CPU) draws from Python or NumPy.

    Costs one forward pass, and a backward pass only where the forward pass drew from one of these.
    """
    halve_until_it_fits(lambda fewer: _check(learner, fewer), batch)


def _check(learner: Learner, batch: Batch) -> None:
    module = learner.module
    with (
        preserve_state(module, learner.device),
        widest_forward(learner, batch),
        torch.enable_grad(),
    ):
        drawn = _drawn_in_backward(learner, batch)
        if not drawn:
            return
        # A second forward pass, only for the message: hooks at each module cost time.
        with _drawing_modules(module) as modules:
            loss_sums(learner, batch)
    where = f" ({', '.join(modules)})" if modules else ""
    raise DrawsTwice(
        f"a block under activation checkpointing draws from {' and '.join(drawn)}{where}: its "
        "second forward, in the backward pass, draws other numbers than its first, and the "
        "gradient is that of neither. Draw from torch there, or set: "
        "memory.activation_checkpointing=false"
    )


def _drawn_in_backward(learner: Learner, batch: Batch) -> list[str]:
    """The generators that torch does not restore, and that a backward pass draws from."""
    generators = Generators(learner.device)
    start = generators.states()
    loss = torch.stack(list(loss_sums(learner, batch).values())).sum()
    after_forward = generators.states()
    # What the forward did not draw, its second run does not draw either.
    if not _not_restored(after_forward.moved_since(start)) or not loss.requires_grad:
        return []
    try:
        # Not backward(): nothing is to be left in .grad, and no hook of DDP to fire.
        torch.autograd.grad(loss, list(learner.parameters), allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        return []  # reentrant checkpointing supports backward() only: not checked
    return _not_restored(generators.states().moved_since(after_forward))


def _not_restored(generators: list[str]) -> list[str]:
    return [name for name in generators if not name.startswith(RESTORED_BY_TORCH)]


@contextmanager
def _drawing_modules(module: nn.Module) -> Iterator[list[str]]:
    """The innermost modules whose forward, inside, draws from Python's or NumPy's generator."""
    generators = Generators()
    drawing: list[str] = []
    entered = []
    names = {part: name for name, part in module.named_modules()}

    def enter(part: nn.Module, _: object) -> None:
        entered.append((generators.states(), len(drawing)))

    def leave(part: nn.Module, *_: object) -> None:
        states, count_before = entered.pop()
        # A module inside it that was found in the meantime is closer to the draw.
        is_innermost = len(drawing) == count_before
        if is_innermost and _not_restored(generators.states().moved_since(states)):
            drawing.append(names[part] or type(part).__name__)

    hooks = []
    for part in names:
        hooks.append(part.register_forward_pre_hook(enter))
        hooks.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield drawing
    finally:
        for hook in hooks:
            hook.remove()
