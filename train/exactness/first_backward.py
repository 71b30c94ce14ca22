"""The first backward pass, on the plain module: which parameters get a gradient, and does one arrive anywhere else?"""

import types
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data import Sets
from train.data.device_prefetch import to_device
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.exactness.reference_gradient import as_many_as_fit, plain_forward
from train.models.preserve_state import undisturbed
from train.randomness import Generators
from train.step import Learner
from train.tasks import by_term

SAMPLES = 8  # of each rank
RANKS = 8  # that try samples of their own; more repeat theirs, since each rank reads those of all
DEEPEST, LONGEST = 6, 1000  # objects inside objects of a task, and members of one, that are looked through


class ForeignGradient(UserError):
    """A tensor outside of the model requires a gradient: it would pile up, and nothing would be trained by it."""


def samples_of_rank(sets: Sets, seed: int, ranks: Ranks) -> Batch:
    """A few samples of the first steps, other ones on each rank where the data has so many."""
    batch = sets.trial(seed, SAMPLES * min(ranks.world_size, RANKS))
    size = len(next(iter(batch.values())))
    start = ranks.rank * SAMPLES % size
    return {name: column[start : start + SAMPLES] for name, column in batch.items()}


def first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    """Names of the trained parameters that get a gradient from `batch` (on the CPU), in the order in which they do.

    Fewer samples are tried where these do not fit in memory. Leaves no gradient, and buffers and generators as they
    were. Raises ForeignGradient.
    """
    return as_many_as_fit(lambda few: _first_backward(learner, few, seed), batch)


def _first_backward(learner: Learner, batch: Batch, seed: int) -> list[str]:
    names: dict[Any, str] = {p: name for name, p in learner.module.named_parameters() if p.requires_grad}
    arrived: dict[str, None] = {}

    def take(parameter: nn.Parameter) -> None:
        arrived[names[parameter]] = None
        parameter.grad = None  # freed at once: all together they might not fit beside the activations

    with undisturbed(learner.module, learner.device), plain_forward(learner.module):
        loss = _loss(learner, batch, seed)
        foreign = _leaves(loss) - names.keys()
        if foreign:
            # A tensor that is made anew for each batch, such as inputs that a task derives by, is nobody's to train.
            foreign &= _leaves(_loss(learner, batch, seed))
        if foreign:
            raise ForeignGradient(_sentence(learner, foreign))
        for parameter in names:
            parameter.grad = None
        hooks = [p.register_post_accumulate_grad_hook(take) for p in names]
        try:
            if loss.requires_grad:
                torch.autograd.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in names:
                parameter.grad = None
    return list(arrived)


def _loss(learner: Learner, batch: Batch, seed: int) -> Tensor:
    Generators(learner.device).seed(seed)
    with torch.enable_grad(), learner.accelerator.autocast():
        sums = by_term(learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype)))
        return torch.stack([learner.coefficients[term] * value for term, value in sums.items()]).sum()


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors in which a backward pass would store a gradient.

    Not those inside a block under reentrant checkpointing, whose graph is made in the backward pass.
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


def _sentence(learner: Learner, foreign: set[Tensor]) -> str:
    task = type(learner.task).__name__
    held = dict(_tensors(learner.module, "the model", 0, set())) | dict(_tensors(learner.task, task, 0, set()))
    found = [path for path, tensor in held.items() if any(tensor is other for other in foreign)]
    shapes = [f"a tensor of shape {tuple(tensor.shape)}" for tensor in foreign]
    return (
        f"the loss depends on {', '.join(found or shapes)}, which requires a gradient and is no parameter of the "
        f"model: nothing would train it. Make it an nn.Parameter of the model, which a task calls; or, where it is "
        f"not to be trained: .requires_grad_(False)"
    )


def _tensors(thing: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of all that an object holds, in its attributes, lists and dicts."""
    if id(thing) in seen or depth > DEEPEST:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
        return
    for name, member in _members(thing):
        yield from _tensors(member, f"{path}{name}", depth + 1, seen)


def _members(thing: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(thing, nn.Module):
        own = {**thing._parameters, **thing._modules, **vars(thing)}
        return [(f".{name}", member) for name, member in own.items()]
    if isinstance(thing, str | bytes | types.ModuleType | torch.dtype | torch.device):
        return []
    if isinstance(thing, partial):
        return [("", thing.func), ("", thing.args), ("", thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [("", thing.__self__)]
    if isinstance(thing, Mapping):
        return [(f"[{key!r}]", thing[key]) for key in thing] if len(thing) <= LONGEST else []
    if isinstance(thing, list | tuple | set | frozenset):
        return [(f"[{i}]", member) for i, member in enumerate(thing)] if len(thing) <= LONGEST else []
    own = getattr(thing, "__dict__", {})
    of_class = {} if isinstance(thing, type) else _members_of_class(type(thing))
    return [(f".{name}", member) for name, member in {**of_class, **own}.items()]


def _members_of_class(kind: type) -> dict[str, Any]:
    return {name: member for base in kind.__mro__[:-1] for name, member in vars(base).items()}
