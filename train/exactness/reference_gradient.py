"""Loss and gradient of some samples beside the loop: nothing is accumulated, and no hook of a wrapper fires."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.step import Learner
from train.tasks import by_term

T = TypeVar("T")


def as_many_as_fit(trial: Callable[[Batch], T], batch: Batch) -> T:
    """`trial` of `batch`, or of the first half of it, a quarter ... where more does not fit the memory."""
    while True:
        with suppress(torch.OutOfMemoryError):
            return trial(batch)
        size = len(next(iter(batch.values())))
        if size == 1:
            raise torch.OutOfMemoryError("one sample does not fit the memory")
        batch = {name: column[: size // 2] for name, column in batch.items()}


def in_training(learner: Learner, parts: Sequence[Batch], tolerance: float) -> tuple[float, list[str], str]:
    """By how much the gradient of a batch is not the sum over its parts, why, and what kept it from being tried.

    What training mode adds: statistics over the micro-batch, and random masks. And all that a loss alone does not tell:
    under a head of zeros it is the same whatever the model sees.
    """
    module = learner.module
    normalising = at_work(module, nn.modules.batchnorm._BatchNorm)
    reasons = []
    if normalising:
        reasons.append(
            f"BatchNorm in train mode takes its statistics from each micro-batch ({_some(normalising)}): use GroupNorm "
            f"or LayerNorm, or freeze it by .eval() in the model's constructor"
        )
    try:
        whole = _drawn(learner, parts[0], 1)
        if distance(_drawn(learner, parts[0], 2), whole) > tolerance:
            masking = at_work(module, nn.modules.dropout._DropoutNd)
            where = f" ({_some(masking)})" if masking else ""
            reasons.append(
                f"dropout or the like draws other masks for other micro-batches{where}: same distribution, other "
                f"numbers; a probability of 0 is exact"
            )
        if reasons:
            return 0.0, reasons, ""
        split = [
            first + second for first, second in zip(*(_drawn(learner, part, 3) for part in parts[1:]), strict=True)
        ]
    except RuntimeError as error:
        if REENTRANT not in str(error):
            raise
        return 0.0, reasons, "the model's checkpointing (use_reentrant=True) does not let its gradient be tried"
    apart = distance(split, whole)
    if apart > tolerance:
        reasons.append(
            f"in train mode the gradient of a batch is not the sum over its halves, by {apart:.0e}: the model "
            f"couples samples, or the loss does"
        )
    return apart, reasons, ""


REENTRANT = "use_reentrant"
"""In what torch.utils.checkpoint raises where a gradient is asked for beside `.grad`: it cannot be tried then."""


def _drawn(learner: Learner, batch: Batch, seed: int) -> Sequence[Tensor]:
    torch.manual_seed(seed)
    with plain_forward(learner.module), torch.enable_grad():
        return loss_and_gradient(learner, batch)


@contextmanager
def plain_forward(module: nn.Module) -> Iterator[None]:
    """As its author wrote it, neither compiled nor under autocast, which accelerate puts around `forward`."""
    own: dict[str, object] = vars(module)
    kept: dict[str, object] = {name: own[name] for name in ("forward", "_compiled_call_impl") if name in own}
    own.update(forward=own.get("_original_forward", module.forward), _compiled_call_impl=None)
    try:
        yield
    finally:
        del own["forward"], own["_compiled_call_impl"]
        own |= kept


def loss_and_gradient(learner: Learner, batch: Batch) -> Sequence[Tensor]:
    """The sum of the losses in `batch` (on the CPU), its terms by their coefficients; then a gradient per parameter."""
    sums = by_term(learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype)))
    loss = torch.stack([learner.coefficients[term] * value for term, value in sums.items()]).sum()
    if not loss.requires_grad:
        return (loss,)
    found = torch.autograd.grad(loss, list(learner.parameters), allow_unused=True, materialize_grads=True)
    return loss.detach(), *found


def squares(values: Sequence[Tensor]) -> Tensor:
    """(2,): the squared norms of the first, and of all others together."""
    norms = torch.stack([torch.linalg.vector_norm(value).double() for value in values]).square().cpu()
    return torch.stack([norms[0], norms[1:].sum()])


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Of two results of loss_and_gradient, relative to the second: the larger one of the loss's and the gradient's."""
    apart = squares([a - b for a, b in zip(found, expected, strict=True)])
    return float((apart / squares(expected)).sqrt().nan_to_num(0.0).max())  # nothing is no distance from nothing


def at_work(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Modules of a kind that are at work in training: a frozen BatchNorm and a Dropout of 0 are not."""
    return [n for n, m in module.named_modules() if isinstance(m, kind) and m.training and getattr(m, "p", 1.0) > 0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
