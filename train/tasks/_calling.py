"""Calls a model on a batch, and takes the one tensor that a task needs from what it returns."""

import inspect
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

from torch import Tensor

from train.batch.window import MASK, Batch
from train.errors import UserError


class ModelOutputs(UserError):
    """A model that does not return what the task needs; the message has the code to write."""


def outputs_of(model: Any, batch: Batch, *more: Any, **named: Any) -> Any:
    """What the model returns for the inputs.

    The attention mask is passed too, where the batch has one and the model has an argument of that
    name.
    """
    if MASK not in batch:
        return model(batch["inputs"], *more, **named)
    # A wrapper's forward accepts everything: the module inside decides.
    inside: Any = type(getattr(model, "module", None))
    outside: Any = type(model)
    if _takes_mask(outside) or _takes_mask(inside):
        return model(batch["inputs"], *more, attention_mask=batch[MASK], **named)
    return model(batch["inputs"], *more, **named)


@cache
def _takes_mask(kind: Hashable) -> bool:
    """By the class: accelerate and torch.compile replace the forward of the instance."""
    forward = getattr(kind, "forward", None)
    return callable(forward) and MASK in inspect.signature(forward).parameters


def tensor_of(model: Any, outputs: Any) -> Tensor:
    """The one tensor in a model's outputs. Raises ModelOutputs.

    They are that tensor, or hold it as `logits`, or hold nothing else.
    """
    if isinstance(outputs, Tensor):
        return outputs
    tensor = None
    if isinstance(outputs, Mapping):
        tensor = outputs.get("logits")
    elif isinstance(outputs, tuple | list) and len(outputs) == 1:
        tensor = outputs[0]
    if isinstance(tensor, Tensor):
        return tensor
    raise _model_outputs(type(getattr(model, "module", model)), outputs)


def _model_outputs(model_class: Any, outputs: Any) -> ModelOutputs:
    keys: list[Any] = []
    if isinstance(outputs, Mapping):
        keys = list(outputs)
    elif type(outputs) in (tuple, list):  # not a named tuple
        keys = list(range(len(outputs)))
    returned = type(outputs).__name__
    fix = "Let forward return it"
    if keys:
        returned += f" with {', '.join(map(repr, keys))}"
        fix += (
            f", or write my/one.py, and set: model.target=one.One\n"
            f"    from {model_class.__module__} import {model_class.__name__}\n"
            f"    class One({model_class.__name__}):\n"
            f"        def forward(self, *inputs, **more):\n"
            f"            return super().forward(*inputs, **more)[{keys[0]!r}]"
        )
    return ModelOutputs(
        f"the model {model_class.__name__} returns {returned}, and the task needs one tensor. {fix}"
    )
