"""A model is called on a batch as it wants to be."""

import inspect
from collections.abc import Hashable
from functools import cache
from typing import Any

from train.batch.window import MASK, Batch


def outputs_of(model: Any, batch: Batch, *more: Any, **named: Any) -> Any:
    """The model of the inputs, and of the mask of the tokens where the batch has one and the model takes it by name."""
    if MASK not in batch:
        return model(batch["inputs"], *more, **named)
    inside: Any = type(getattr(model, "module", None))  # of a wrapper, which hands on whatever it is given
    plain: Any = type(model)
    if _takes_mask(plain) or _takes_mask(inside):
        return model(batch["inputs"], *more, attention_mask=batch[MASK], **named)
    return model(batch["inputs"], *more, **named)


@cache
def _takes_mask(kind: Hashable) -> bool:
    """Asked of the class: accelerate and torch.compile change the forward of the one module."""
    forward = getattr(kind, "forward", None)
    return callable(forward) and MASK in inspect.signature(forward).parameters
