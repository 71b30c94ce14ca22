"""Does the padding behind a text, which batch.micro_tokens cuts off, matter to its gradient? Tried before training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.data import Padding
from train.feed import to_device
from train.models import ModelError
from train.step import Learner
from train.tasks import by_term
from train.window import Batch


def padding_reasons(learner: Learner, batch: Batch, padding: Padding, tolerance: float) -> Iterator[str]:
    """Why cutting each text of `batch` to its length is not exact, if so: by the loss and the gradient of each alone.

    A loss does not tell all: under a head of zeros it is the same whatever the model sees. One text at a time, since
    more may not fit at full length. Raises ModelError where the model does not take a text that is cut.
    """
    learner.module.eval()
    apart, size = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    with plain_forward(learner.module), torch.enable_grad():
        for i, length in enumerate(padding.lengths(batch).tolist()):
            text = {name: column[i : i + 1] for name, column in batch.items()}
            whole = _loss_and_gradient(learner, text)
            try:
                cut = _loss_and_gradient(learner, padding.cut(text))
            except Exception as error:
                full = next(text[name].shape[1] for name in padding.fills)
                raise ModelError(
                    f"the model takes texts of {full} tokens (data.max_length), but not one that batch.micro_tokens "
                    f"cuts to its {length}: {type(error).__name__}: {error}. "
                    f"Type: batch.micro_tokens=null batch.micro=8 (or the like)"
                ) from error
            apart += _squares([a - b for a, b in zip(whole, cut, strict=True)])
            size += _squares(whole)
    for what, relative in zip(("loss", "gradient"), (apart / size).sqrt().tolist(), strict=True):
        if relative > tolerance:  # not where both are 0, or not finite
            yield (
                f"the {what} changes with the padding behind the texts, which batch.micro_tokens cuts off: by "
                f"{relative:.0e} (does the model look at these places, as a mean over all does?)"
            )
            return


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


def _loss_and_gradient(learner: Learner, batch: Batch) -> Sequence[Tensor]:
    sums = by_term(learner.task.loss_sum(learner.module, to_device(batch, learner.device, learner.dtype)))
    loss = torch.stack([learner.coefficients[term] * value for term, value in sums.items()]).sum()
    if not loss.requires_grad:
        return (loss,)
    found = torch.autograd.grad(loss, list(learner.parameters), allow_unused=True, materialize_grads=True)
    return loss.detach(), *found


def _squares(values: Sequence[Tensor]) -> Tensor:
    """(2,): the squared norms of the first, and of all others together."""
    norms = torch.stack([torch.linalg.vector_norm(value).double() for value in values]).square().cpu()
    return torch.stack([norms[0], norms[1:].sum()])
