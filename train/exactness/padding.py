"""Does the padding behind a text, which batch.micro_tokens cuts off, change its gradient?"""

from collections.abc import Iterator

import torch

from train.batch.window import Batch
from train.data import Padding
from train.exactness.reference_gradient import loss_and_gradient, squared_norms
from train.models import ModelError
from train.step import Learner


def padding_reasons(
    learner: Learner, batch: Batch, padding: Padding, tolerance: float
) -> Iterator[str]:
    """Why cutting each text of `batch` to its length is not exact; nothing where it is.

    Loss and gradient are compared, since under a head of zeros the loss is the same whatever the
    model sees. One text at a time: more may not fit at full length. Raises ModelError where the
    model does not take a text that is cut.
    """
    learner.module.eval()
    squared_difference = torch.zeros(2, dtype=torch.float64)  # of loss and gradient
    squared_norm = torch.zeros(2, dtype=torch.float64)
    with torch.enable_grad():
        for i, length in enumerate(padding.lengths(batch).tolist()):
            text = {name: column[i : i + 1] for name, column in batch.items()}
            padded = loss_and_gradient(learner, text)
            try:
                cut = loss_and_gradient(learner, padding.cut(text))
            except Exception as error:
                full_length = next(text[name].shape[1] for name in padding.fills)
                raise ModelError(
                    f"the model takes texts of {full_length} tokens (data.max_length), but not one "
                    f"that batch.micro_tokens cuts to its {length}: {type(error).__name__}: "
                    f"{error}. Set: batch.micro_tokens=null batch.micro=8 (or the like)"
                ) from error
            difference = [a - b for a, b in zip(padded, cut, strict=True)]
            squared_difference += squared_norms(learner, difference)
            squared_norm += squared_norms(learner, padded)
    relative = (squared_difference / squared_norm).sqrt().tolist()
    for what, size in zip(("loss", "gradient"), relative, strict=True):
        if size > tolerance:  # not where both are 0, or not finite: that is NaN
            yield (
                f"the {what} changes with the padding behind the texts, which batch.micro_tokens "
                f"cuts off: by {size:.0e} (does the model look at these places, as a mean over "
                "all does?)"
            )
            return
