"""Loss and gradient of a few samples, computed beside the loop.

Nothing is accumulated in `.grad`, and no hook of DDP fires.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from train.batch.window import Batch
from train.data.device_prefetch import to_device
from train.distributed.sharded import local
from train.errors import UserError, is_out_of_memory
from train.models.preserve_state import preserve_state
from train.step import Learner
from train.tasks import by_term

T = TypeVar("T")

LossAndGradient = Sequence[Tensor]
"""The loss, 0-dim; then a gradient per trained parameter: what this rank holds of it."""


class MixedTypes(UserError):
    """A loss between numbers of two types, which torch does not take."""


def halve_until_it_fits(work: Callable[[Batch], T], batch: Batch) -> T:
    """`work(batch)`; out of memory: of the first half of the batch, the first quarter, ..."""
    while True:
        try:
            return work(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`: until here the error holds the tensors that did not fit.
        size = number_of_samples(batch)
        if size == 1:
            raise torch.OutOfMemoryError("one sample does not fit the memory")
        batch = {name: column[: size // 2] for name, column in batch.items()}


def number_of_samples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


@contextmanager
def plain_forward(module: nn.Module) -> Iterator[None]:
    """Inside, `module` runs as its author wrote it: neither compiled nor under autocast."""
    # accelerate wraps autocast around `forward` and keeps the original as `_original_forward`;
    # torch.compile sets `_compiled_call_impl`. Both are attributes of the instance.
    attributes: dict[str, object] = vars(module)
    saved: dict[str, object] = {}
    for name in ("forward", "_compiled_call_impl"):
        if name in attributes:
            saved[name] = attributes[name]
    attributes["forward"] = attributes.get("_original_forward", module.forward)
    # None on the instance: nn.Module.__call__ then takes the plain way, whatever was compiled.
    attributes["_compiled_call_impl"] = None
    try:
        yield
    finally:
        del attributes["forward"]
        del attributes["_compiled_call_impl"]
        attributes |= saved


@contextmanager
def widest_forward(learner: Learner, batch: Batch) -> Iterator[str]:
    """Without autocast where the model runs so, else with it.

    Yields the error that the model raised without autocast; empty where it raised none. Attention
    kernels made for GPUs may take half precision only.
    """
    module = learner.module
    error = ""
    has_autocast = "_original_forward" in vars(module)
    if has_autocast:
        # One sample in eval mode: the question is whether the types fit, and BatchNorm would refuse
        # it in training.
        one_sample = {name: column[:1] for name, column in batch.items()}
        with preserve_state(module, learner.device), torch.no_grad(), plain_forward(module):
            module.eval()
            error = _error_of(lambda: loss_sums(learner, one_sample))
    if error:
        yield error
        return
    with plain_forward(module):
        yield ""


def _error_of(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return short_reason(error)
    return ""


def short_reason(error: Exception) -> str:
    """For one line: torch's messages may go on for pages."""
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:200]}"


def loss_sums(learner: Learner, batch: Batch) -> Mapping[str, Tensor]:
    """The terms of the loss in `batch` (on the CPU)."""
    on_device = to_device(batch, learner.device, learner.dtype)
    return by_term(learner.task.loss_sum(learner.module, on_device))


def total_loss(learner: Learner, batch: Batch) -> Tensor:
    """The terms of the loss in `batch` (on the CPU), added up by their coefficients."""
    weighted = []
    for term, value in loss_sums(learner, batch).items():
        weighted.append(learner.coefficients[term] * value)
    return torch.stack(weighted).sum()


def loss_and_gradient(learner: Learner, batch: Batch) -> LossAndGradient:
    """Of the sum of the losses in `batch` (on the CPU)."""
    try:
        # FSDP2's graph holds gathered copies of its parameters: autograd.grad would give zeros.
        if learner.parallel.is_sharded:
            return _backward(learner, batch)
        loss = total_loss(learner, batch)
        if not loss.requires_grad:
            return loss, *map(torch.zeros_like, learner.parameters)
        parameters = list(learner.parameters)
        # Not backward(): the gradient of the training in `.grad` is left alone.
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), *gradient
    except RuntimeError as error:
        if "Found dtype" in str(error):
            raise MixedTypes(_mixed_types_message(error, batch)) from error
        # Reentrant activation checkpointing supports backward() only, and raises with this word.
        if "use_reentrant" not in str(error):
            raise
    return _backward(learner, batch)


def _mixed_types_message(error: RuntimeError, batch: Batch) -> str:
    """Some losses of torch take two types in the forward pass, and raise in the backward pass."""
    types = []
    for name, column in batch.items():
        if column.is_floating_point():
            types.append(f"{name} {str(column.dtype).removeprefix('torch.')}")
    return (
        f"the gradient cannot be taken: {error}. A loss was given the model's outputs in "
        "one type and a column in another; columns have the types that they have in the "
        f"data ({', '.join(types)}). Write in the task: target.to(output.dtype), or "
        "output.to(target.dtype)"
    )


def _backward(learner: Learner, batch: Batch) -> LossAndGradient:
    """By way of `.grad`, which is put back.

    DDP's hooks do not fire, since its forward did not run. FSDP2's give the mean over the ranks,
    which have all computed the same.
    """
    saved = [p.grad for p in learner.parameters]
    try:
        for p in learner.parameters:
            p.grad = None
        loss = total_loss(learner, batch)
        if loss.requires_grad:
            loss.backward()
        gradient = gradients_or_zeros(learner.parameters)
    finally:
        for p, grad in zip(learner.parameters, saved, strict=True):
            p.grad = grad
    return loss.detach(), *gradient


def gradients_or_zeros(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What this rank holds of each `.grad`; zeros where there is none."""
    gradients = []
    for p in parameters:
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        gradients.append(local(gradient))
    return gradients


def squared_norms(learner: Learner, result: LossAndGradient) -> Tensor:
    """(2,): of the loss, and of the gradient over all parameters; float64, on the CPU."""
    loss, *gradient = result
    of_loss = torch.linalg.vector_norm(loss).double().square().cpu()
    of_gradient = learner.parallel.norms(gradient).square().sum()
    return torch.stack([of_loss, of_gradient])


def active_modules(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Names of the modules of a kind that are active in training.

    Not those in eval mode (a frozen BatchNorm), nor a Dropout whose probability is 0.
    """
    names = []
    for name, part in module.named_modules():
        probability = getattr(part, "p", 1.0)
        if isinstance(part, kind) and part.training and probability > 0:
            names.append(name)
    return names


def active_batch_norms(module: nn.Module) -> list[str]:
    return active_modules(module, nn.modules.batchnorm._BatchNorm)
