"""A model is called on a batch as it wants to be."""

import inspect
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from train.batch.window import MASK, Batch
from train.errors import UserError

SEVERAL = ("tuple", "list")


class ModelOutputs(UserError):
    """A model that does not return what the task needs; the message says what to write."""


def outputs_of(model: Any, batch: Batch, *more: Any, **named: Any) -> Any:
    """The model of the inputs, and of the mask of the tokens where the batch has one and the model
    takes it by name.
    """
    if MASK not in batch:
        return model(batch["inputs"], *more, **named)
    # of a wrapper, which hands on whatever it is given
    inside: Any = type(getattr(model, "module", None))
    plain: Any = type(model)
    if _takes_mask(plain) or _takes_mask(inside):
        return model(batch["inputs"], *more, attention_mask=batch[MASK], **named)
    return model(batch["inputs"], *more, **named)


@cache
def _takes_mask(kind: Hashable) -> bool:
    """Asked of the class: accelerate and torch.compile change the forward of the one module."""
    forward = getattr(kind, "forward", None)
    return callable(forward) and MASK in inspect.signature(forward).parameters


def tensor_of(model: Any, outputs: Any) -> Tensor:
    """The one tensor that a model returns: itself, or what it calls its logits. Raises
    ModelOutputs.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = None
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif isinstance(outputs, tuple | list) and len(outputs) == 1:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    kind = type(getattr(model, "module", model))
    shown = type(outputs).__name__
    keys = (
        list(outputs)
        if isinstance(outputs, Mapping)
        else list(range(len(outputs)))
        if shown in SEVERAL
        else []
    )
    fix = "Let forward return it"
    if keys:
        shown += f" with {', '.join(map(repr, keys))}"
        fix += (
            f", or write my/one.py, and type: model.target=one.One\n"
            f"    from {kind.__module__} import {kind.__name__}\n"
            f"    class One({kind.__name__}):\n"
            f"        def forward(self, *inputs, **more):\n"
            f"            return super().forward(*inputs, **more)[{keys[0]!r}]"
        )
    raise ModelOutputs(
        f"the model {kind.__name__} returns {shown}, and the task needs one tensor. {fix}"
    )
