"""The first backward pass, on the plain module.

Which parameters get a gradient, and does one arrive in a tensor that is no parameter?
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Datasets
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.exactness.held_tensors import held_tensors
from train.exactness.reference_gradient import (
    halve_until_it_fits,
    number_of_samples,
    plain_forward,
    total_loss,
)
from train.models.preserve_state import preserve_state
from train.randomness import Generators
from train.step import Learner, NoGradient

SAMPLES_PER_RANK = 8

MAX_RANKS = 8
"""Ranks that try samples of their own; more repeat theirs, since each rank reads those of all."""


class ForeignGradient(UserError):
    """A tensor outside of the model requires a gradient, which would pile up and train nothing."""


def samples_of_rank(sets: Datasets, seed: int, ranks: Ranks, same: bool = False) -> Batch:
    """A few samples of the first steps: other ones on each rank where the data has so many.

    `same`: the same ones on all ranks.
    """
    if same:
        return sets.trial(seed, SAMPLES_PER_RANK)
    # Other samples on each rank: a branch that only some samples take shows in one of them.
    batch = sets.trial(seed, SAMPLES_PER_RANK * min(ranks.world_size, MAX_RANKS))
    start = ranks.rank * SAMPLES_PER_RANK % number_of_samples(batch)
    return {name: column[start : start + SAMPLES_PER_RANK] for name, column in batch.items()}


def first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    """Names of the trained parameters that get a gradient from `batch` (on the CPU).

    In the order in which they do, from which DDP's buckets are built. Fewer samples are tried where
    these do not fit in memory. Leaves no gradient, and buffers and generators as they were. Raises
    ForeignGradient.
    """
    return halve_until_it_fits(lambda fewer: _first_backward(learner, fewer, seed), batch)


def watch_foreign(learner: Learner) -> None:
    """Raise ForeignGradient, later in the run, when a gradient first arrives outside of the model.

    Only then: a branch may be taken late, and a teacher that is only called under no_grad is right
    as it is, though its parameters require gradients.
    """
    parameters: set[Any] = set(learner.module.parameters())
    held: dict[str, Any] = dict(held_tensors(learner.module, learner.task))
    for path, tensor in held.items():
        # Only a leaf collects a gradient in .grad; torch refuses the hook on other tensors.
        if tensor.requires_grad and tensor.is_leaf and tensor not in parameters:
            tensor.register_post_accumulate_grad_hook(partial(_raise_foreign, path))


def _raise_foreign(path: str, _: Tensor) -> None:
    raise ForeignGradient(_foreign_message([path]))


def _first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    with preserve_state(learner.module, learner.device), plain_forward(learner.module):
        with _parameters_in_forward(learner.module) as parameters:
            loss = _seeded_loss(learner, batch, seed)
        if not loss.requires_grad:
            kind = type(learner.module).__name__
            raise NoGradient(
                f"the loss depends on no trainable parameter of {kind}: does its forward, or the "
                "task, call detach(), .item(), .numpy() or torch.no_grad()? Take that out"
            )
        foreign = _leaves(loss) - parameters
        if foreign:
            # A tensor that is made anew for each batch, such as inputs that a task differentiates
            # by, is not meant to be trained: it is not in a second graph.
            foreign &= _leaves(_seeded_loss(learner, batch, seed))
        if foreign:
            raise ForeignGradient(_foreign_message(_names_of(learner, foreign)))
        return _arrivals(learner, loss)


def _arrivals(learner: Learner, loss: Tensor) -> list[str]:
    """Names of the parameters in the order in which their gradients arrive."""
    names: dict[Any, str] = {}
    for name, p in learner.module.named_parameters():
        if p.requires_grad:
            names[p] = name
    arrived: dict[str, None] = {}

    def record(parameter: nn.Parameter) -> None:
        arrived[names[parameter]] = None
        # Freed at once: all together they might not fit beside the activations.
        parameter.grad = None

    for parameter in names:
        parameter.grad = None
    hooks = [p.register_post_accumulate_grad_hook(record) for p in names]
    try:
        torch.autograd.backward(loss)
        # FSDP2 sets .grad itself, and no hook is called.
        for parameter, name in names.items():
            if parameter.grad is not None:
                arrived[name] = None
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in names:
            parameter.grad = None
    return list(arrived)


@contextmanager
def _parameters_in_forward(module: nn.Module) -> Iterator[set[Any]]:
    """The parameters, and the tensors that FSDP2 puts in their place during a forward pass."""
    seen: set[Any] = set(module.parameters())

    def record(part: nn.Module, *_: object) -> None:
        seen.update(part.parameters(recurse=False))

    hooks = [part.register_forward_pre_hook(record) for part in module.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _seeded_loss(learner: Learner, batch: Batch, seed: int) -> Tensor:
    # So that two graphs of the same batch are the same.
    Generators(learner.device).seed(seed)
    with torch.enable_grad(), learner.accelerator.autocast():
        return total_loss(learner, batch)


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors in which a backward pass would store a gradient.

    Not those inside a block under reentrant checkpointing, whose graph is made in the backward
    pass.
    """
    leaves = set()
    seen = set()
    # A list in place of recursion: a graph may be deeper than Python's stack allows.
    waiting = [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of autograd's AccumulateGrad nodes
        if variable is not None:
            leaves.add(variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _names_of(learner: Learner, foreign: set[Tensor]) -> list[str]:
    names = []
    for path, tensor in held_tensors(learner.module, learner.task).items():
        # By identity: == on tensors compares their elements.
        if any(tensor is other for other in foreign):
            names.append(path)
    return names or [f"a tensor of shape {tuple(tensor.shape)}" for tensor in foreign]


def _foreign_message(names: Sequence[str]) -> str:
    return (
        f"the loss depends on {', '.join(names)}, which requires a gradient and is no parameter of "
        "the model: nothing would train it. Make it an nn.Parameter of the model, which a task "
        "calls; or, where it is not to be trained: .requires_grad_(False)"
    )
