"""Does the padding behind a text, which batch.micro_tokens cuts off, matter to its gradient? Tried
before training.
"""

from collections.abc import Iterator

import torch

from train.batch.window import Batch
from train.data import Padding
from train.exactness.reference_gradient import loss_and_gradient, squares
from train.models import ModelError
from train.step import Learner


def padding_reasons(
    learner: Learner, batch: Batch, padding: Padding, tolerance: float
) -> Iterator[str]:
    """Why cutting each text of `batch` to its length is not exact, if so: by the loss and the
    gradient of each alone.

    A loss does not tell all: under a head of zeros it is the same whatever the model sees. One text
    at a time, since more may not fit at full length. Raises ModelError where the model does not
    take a text that is cut.
    """
    learner.module.eval()
    apart, size = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    with torch.enable_grad():
        for i, length in enumerate(padding.lengths(batch).tolist()):
            text = {name: column[i : i + 1] for name, column in batch.items()}
            whole = loss_and_gradient(learner, text)
            try:
                cut = loss_and_gradient(learner, padding.cut(text))
            except Exception as error:
                full = next(text[name].shape[1] for name in padding.fills)
                raise ModelError(
                    f"the model takes texts of {full} tokens (data.max_length), but not one that "
                    f"batch.micro_tokens cuts to its {length}: {type(error).__name__}: {error}. "
                    f"Type: batch.micro_tokens=null batch.micro=8 (or the like)"
                ) from error
            apart += squares(learner, [a - b for a, b in zip(whole, cut, strict=True)])
            size += squares(learner, whole)
    for what, relative in zip(("loss", "gradient"), (apart / size).sqrt().tolist(), strict=True):
        if relative > tolerance:  # not where both are 0, or not finite
            yield (
                f"the {what} changes with the padding behind the texts, which batch.micro_tokens "
                f"cuts off: by {relative:.0e} (does the model look at these places, as a mean over "
                "all does?)"
            )
            return
