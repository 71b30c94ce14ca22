"""The first backward pass, on the plain module: which parameters get a gradient, and does one
arrive anywhere else?
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Datasets
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.exactness.held_tensors import held_tensors
from train.exactness.reference_gradient import as_many_as_fit, plain_forward
from train.models.preserve_state import undisturbed
from train.randomness import Generators
from train.step import Learner, NoGradient
from train.tasks import by_term

SAMPLES = 8  # of each rank
RANKS = 8  # that try samples of their own; more repeat theirs, since each rank reads those of all


class ForeignGradient(UserError):
    """A tensor outside of the model requires a gradient: it would pile up, and nothing would be
    trained by it.
    """


def samples_of_rank(sets: Datasets, seed: int, ranks: Ranks, same: bool = False) -> Batch:
    """A few samples of the first steps, other ones on each rank where the data has so many; or the
    `same` on all.
    """
    if same:
        return sets.trial(seed, SAMPLES)
    batch = sets.trial(seed, SAMPLES * min(ranks.world_size, RANKS))
    size = len(next(iter(batch.values())))
    start = ranks.rank * SAMPLES % size
    return {name: column[start : start + SAMPLES] for name, column in batch.items()}


def first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    """Names of the trained parameters that get a gradient from `batch` (on the CPU), in the order
    in which they do.

    Fewer samples are tried where these do not fit in memory. Leaves no gradient, and buffers and
    generators as they were. Raises ForeignGradient.
    """
    return as_many_as_fit(lambda few: _first_backward(learner, few, seed), batch)


def watch_foreign(learner: Learner) -> None:
    """Let the gradient that first arrives in a tensor that task or model hold beside the parameters
    end the run.

    A branch may be taken late; and a teacher that is only asked without a graph is right as it is.
    """
    parameters: set[Any] = set(learner.module.parameters())
    held: dict[str, Any] = dict(held_tensors(learner.module, learner.task))
    for path, tensor in held.items():
        if tensor.requires_grad and tensor.is_leaf and tensor not in parameters:
            tensor.register_post_accumulate_grad_hook(partial(_refuse, path))


def _refuse(path: str, _: Tensor) -> None:
    raise ForeignGradient(_sentence([path]))


def _first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    names: dict[Any, str] = {
        p: name for name, p in learner.module.named_parameters() if p.requires_grad
    }
    arrived: dict[str, None] = {}

    def take(parameter: nn.Parameter) -> None:
        arrived[names[parameter]] = None
        # freed at once: all together they might not fit beside the activations
        parameter.grad = None

    with undisturbed(learner.module, learner.device), plain_forward(learner.module):
        with _seen_parameters(learner.module) as own:
            loss = _loss(learner, batch, seed)
        if not loss.requires_grad:
            kind = type(learner.module).__name__
            raise NoGradient(
                f"the loss depends on no trainable parameter of {kind}: does its forward, or the "
                "task, call detach(), .item(), .numpy() or torch.no_grad()? Take that out"
            )
        foreign = _leaves(loss) - own
        if foreign:
            # A tensor that is made anew for each batch, such as inputs that a task derives by, is
            # nobody's to train.
            foreign &= _leaves(_loss(learner, batch, seed))
        if foreign:
            raise ForeignGradient(_sentence(_names(learner, foreign)))
        for parameter in names:
            parameter.grad = None
        hooks = [p.register_post_accumulate_grad_hook(take) for p in names]
        try:
            torch.autograd.backward(loss)
            # FSDP2 puts them there itself, and no hook is called.
            arrived.update(dict.fromkeys(name for p, name in names.items() if p.grad is not None))
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in names:
                parameter.grad = None
    return list(arrived)


@contextmanager
def _seen_parameters(module: nn.Module) -> Iterator[set[Any]]:
    """The parameters, and those that stand in their place while a forward pass is under way
    (FSDP2's).
    """
    seen: set[Any] = set(module.parameters())

    def look(part: nn.Module, *_: object) -> None:
        seen.update(part.parameters(recurse=False))

    hooks = [part.register_forward_pre_hook(look) for part in module.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _loss(learner: Learner, batch: Batch, seed: int) -> Tensor:
    Generators(learner.device).seed(seed)
    with torch.enable_grad(), learner.accelerator.autocast():
        sums = by_term(
            learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype))
        )
        return torch.stack(
            [learner.coefficients[term] * value for term, value in sums.items()]
        ).sum()


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors in which a backward pass would store a gradient.

    Not those inside a block under reentrant checkpointing, whose graph is made in the backward
    pass.
    """
    leaves, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _names(learner: Learner, foreign: set[Tensor]) -> list[str]:
    found = [
        path
        for path, tensor in held_tensors(learner.module, learner.task).items()
        if any(tensor is other for other in foreign)
    ]
    return found or [f"a tensor of shape {tuple(tensor.shape)}" for tensor in foreign]


def _sentence(names: Sequence[str]) -> str:
    return (
        f"the loss depends on {', '.join(names)}, which requires a gradient and is no parameter of "
        "the model: nothing would train it. Make it an nn.Parameter of the model, which a task "
        "calls; or, where it is not to be trained: .requires_grad_(False)"
    )
