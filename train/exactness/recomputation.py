"""Draws inside of a block under activation checkpointing: its second forward must draw what its
first one drew.

torch brings its own generators back for that; Python's and NumPy's it does not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.errors import UserError
from train.exactness.reference_gradient import as_many_as_fit, widest_forward
from train.models.preserve_state import undisturbed
from train.randomness import Generators
from train.step import Learner
from train.tasks import by_term

# how the names of generators begin that a second forward finds where the first one found them
REPLAYED = "torch's"


class DrawsTwice(UserError):
    """A block under activation checkpointing draws from a generator that torch does not
    bring back.
    """


def check_recomputation(learner: Learner, batch: Batch) -> None:
    """Raises DrawsTwice where a backward pass over `batch` (on the CPU) draws from Python's or
    NumPy's generator.

    Costs one forward pass, and a backward pass only where the forward pass drew from one of these.
    """
    as_many_as_fit(lambda few: _check(learner, few), batch)


def _check(learner: Learner, batch: Batch) -> None:
    module = learner.module
    generators = Generators(learner.device)
    with undisturbed(module, learner.device), widest_forward(learner, batch), torch.enable_grad():
        start = generators.states()
        sums = by_term(
            learner.task.loss_sum(module, to_device(batch, learner.device, learner.dtype))
        )
        loss = torch.stack(list(sums.values())).sum()
        forward = generators.states()
        if not _foreign(forward.moved_since(start)) or not loss.requires_grad:
            return
        try:
            torch.autograd.grad(loss, list(learner.parameters), allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            return  # that kind of checkpointing takes no such question
        found = _foreign(generators.states().moved_since(forward))
        if not found:
            return
        with _drawing_modules(module) as drawing:
            learner.task.loss_sum(module, to_device(batch, learner.device, learner.dtype))
    where = f" ({', '.join(drawing)})" if drawing else ""
    raise DrawsTwice(
        f"a block under activation checkpointing draws from {' and '.join(found)}{where}: its "
        "second forward, in the backward pass, draws other numbers than its first, and the "
        "gradient is that of neither. Draw from torch there, or set: "
        "memory.activation_checkpointing=false"
    )


def _foreign(moved: list[str]) -> list[str]:
    return [name for name in moved if not name.startswith(REPLAYED)]


@contextmanager
def _drawing_modules(module: nn.Module) -> Iterator[list[str]]:
    """The names of the innermost modules whose forward draws from Python's or NumPy's generator,
    inside.
    """
    generators = Generators()
    found: list[str] = []
    before = []
    names = {part: name for name, part in module.named_modules()}

    def enter(part: nn.Module, _: object) -> None:
        before.append((generators.states(), len(found)))

    def leave(part: nn.Module, *_: object) -> None:
        states, known = before.pop()
        is_innermost = len(found) == known
        if is_innermost and _foreign(generators.states().moved_since(states)):
            found.append(names[part] or type(part).__name__)

    hooks = []
    for part in names:
        hooks.append(part.register_forward_pre_hook(enter))
        hooks.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
