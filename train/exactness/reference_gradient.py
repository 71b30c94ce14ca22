"""Loss and gradient of some samples beside the loop: nothing is accumulated, and no hook of a
wrapper fires.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.distributed.sharded import local
from train.errors import UserError, is_out_of_memory
from train.models.preserve_state import undisturbed
from train.step import Learner
from train.tasks import by_term

T = TypeVar("T")

Result = Sequence[Tensor]
"""The sum of the losses, 0-dim; then a gradient per parameter: what this rank holds of it."""


class MixedTypes(UserError):
    """A loss between numbers of two types, which torch does not take."""


def as_many_as_fit(trial: Callable[[Batch], T], batch: Batch) -> T:
    """`trial` of `batch`, or of the first half of it, a quarter ... where more does not fit the
    memory.
    """
    while True:
        try:
            return trial(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        size = len(next(iter(batch.values())))
        if size == 1:
            raise torch.OutOfMemoryError("one sample does not fit the memory")
        batch = {name: column[: size // 2] for name, column in batch.items()}


@contextmanager
def plain_forward(module: nn.Module) -> Iterator[None]:
    """As its author wrote it, neither compiled nor under autocast, which accelerate puts around
    `forward`.
    """
    own: dict[str, object] = vars(module)
    kept: dict[str, object] = {
        name: own[name] for name in ("forward", "_compiled_call_impl") if name in own
    }
    own.update(forward=own.get("_original_forward", module.forward), _compiled_call_impl=None)
    try:
        yield
    finally:
        del own["forward"], own["_compiled_call_impl"]
        own |= kept


@contextmanager
def widest_forward(learner: Learner, batch: Batch) -> Iterator[str]:
    """Without autocast where the model runs so, else with it; gives the error that it raised
    without.

    Attention made for GPUs may take half precision only.
    """
    module = learner.module
    error = ""
    if "_original_forward" in vars(module):  # of accelerate's autocast
        one = {name: column[:1] for name, column in batch.items()}
        with undisturbed(module, learner.device), torch.no_grad(), plain_forward(module):
            module.eval()
            error = _error_of(lambda: sums_of(learner, one))
    with nullcontext() if error else plain_forward(module):
        yield error


def _error_of(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    return ""


def sums_of(learner: Learner, batch: Batch) -> Mapping[str, Tensor]:
    """The terms of the loss in `batch` (on the CPU)."""
    return by_term(
        learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype))
    )


def loss_and_gradient(learner: Learner, batch: Batch) -> Result:
    """The sum of the losses in `batch` (on the CPU), its terms by their coefficients; then a
    gradient per parameter.
    """
    try:
        # the graph does not hold its parameters: autograd.grad would give zeros
        if learner.parallel.is_sharded:
            return _backward(learner, batch)
        loss = _loss(learner, batch)
        if not loss.requires_grad:
            return loss, *map(torch.zeros_like, learner.parameters)
        found = torch.autograd.grad(
            loss, list(learner.parameters), allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        # some losses of torch take two types, and cannot go back through them
        if "Found dtype" in str(error):
            types = [
                f"{name} {str(c.dtype)[6:]}" for name, c in batch.items() if c.is_floating_point()
            ]
            raise MixedTypes(
                f"the gradient cannot be taken: {error}. A loss was given the model's outputs in "
                "one type and a column in another; columns have the types that they have in the "
                f"data ({', '.join(types)}). Write in the task: target.to(output.dtype), or "
                "output.to(target.dtype)"
            ) from error
        if "use_reentrant" not in str(error):  # of torch.utils.checkpoint
            raise
        return _backward(learner, batch)
    return loss.detach(), *found


def _backward(learner: Learner, batch: Batch) -> Result:
    """By `.grad`. DDP's hooks stay asleep: its forward did not run. FSDP2's give the mean over the
    ranks, which have all computed the same.
    """
    kept = [p.grad for p in learner.parameters]
    try:
        for p in learner.parameters:
            p.grad = None
        loss = _loss(learner, batch)
        if loss.requires_grad:
            loss.backward()
        found = [
            local(torch.zeros_like(p) if p.grad is None else p.grad) for p in learner.parameters
        ]
    finally:
        for p, grad in zip(learner.parameters, kept, strict=True):
            p.grad = grad
    return loss.detach(), *found


def _loss(learner: Learner, batch: Batch) -> Tensor:
    sums = sums_of(learner, batch)
    return torch.stack([learner.coefficients[term] * value for term, value in sums.items()]).sum()


def squares(learner: Learner, result: Result) -> Tensor:
    """(2,): the squared norms of the loss and of the gradient."""
    loss, *gradient = result
    of_loss = torch.linalg.vector_norm(loss).double().square().cpu()
    return torch.stack([of_loss, learner.parallel.norms(gradient).square().sum()])


def at_work(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Modules of a kind that are at work in training: a frozen BatchNorm and a Dropout of 0 are
    not.
    """
    return [
        n
        for n, m in module.named_modules()
        if isinstance(m, kind) and m.training and getattr(m, "p", 1.0) > 0
    ]
