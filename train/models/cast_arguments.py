"""Casts the floating-point arguments of a model to the type of its parameters.

A hook on the plain module: it works inside every wrapper, compiled, and in copies.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.models.precision import FLOATS, widened


def cast_arguments(module: nn.Module, dtype: torch.dtype) -> None:
    """From here on floating-point tensors among the arguments, nested ones too, arrive in `dtype`.

    Finite numbers stay finite: 3.4e38 becomes the largest bf16 number. Only what is passed to the
    module is cast: a task's targets, weights and masks keep their types.
    """
    module.register_forward_pre_hook(partial(_hook, dtype), with_kwargs=True)


@contextmanager
def arguments_cast_to(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, arguments are cast to `dtype`: the parameters have another type for a while."""
    # Replaced under their own keys, so that the order of the hooks stays: the scaling of inputs
    # (train/models/scaling.py) has to come before the cast.
    hooks = module._forward_pre_hooks
    before = dict(hooks)
    for key, hook in before.items():
        if isinstance(hook, partial) and hook.func is _hook:
            hooks[key] = partial(_hook, dtype)
    try:
        yield
    finally:
        hooks.update(before)


def _hook(dtype: torch.dtype, module: nn.Module, args: Any, kwargs: Any) -> Any:
    # Called in every micro-step: it calls nothing where all arguments are plain tensors in `dtype`.
    values = (*args, *kwargs.values()) if kwargs else args
    for value in values:
        if type(value) is not Tensor or (value.dtype is not dtype and value.dtype in FLOATS):
            return _cast(args, dtype), _cast(kwargs, dtype)
    # None leaves the arguments as they are (torch's forward pre-hooks).
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same value with its floating-point tensors in `dtype`, itself where all are already."""
    if isinstance(value, Tensor):
        return _cast_tensor(value, dtype)
    if isinstance(value, Mapping):
        return _cast_mapping(value, dtype)
    if isinstance(value, list | tuple):
        return _cast_sequence(value, dtype)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _cast_dataclass(value, dtype)
    return value


def _cast_tensor(value: Tensor, dtype: torch.dtype) -> Tensor:
    # In a run in float64 complex numbers are widened too; in others they keep their type.
    target = widened(value.dtype) if dtype == torch.float64 else dtype
    if value.dtype == target or (value.dtype not in FLOATS and dtype != torch.float64):
        return value
    # A finite number beyond the largest of the narrower type would become infinite, and the step
    # would be skipped as not finite.
    if not value.is_complex() and torch.finfo(target).max < torch.finfo(value.dtype).max:
        limit = torch.finfo(target).max
        value = torch.where(value.isinf(), value, value.clamp(-limit, limit))
    return value.to(target)


def _cast_mapping(value: Any, dtype: torch.dtype) -> Any:
    changed = {}
    for key, inner in value.items():
        cast = _cast(inner, dtype)
        if cast is not value[key]:
            changed[key] = cast
    return _changed_copy(value, changed, _set_item)


def _cast_dataclass(value: Any, dtype: torch.dtype) -> Any:
    changed = {}
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):  # a field without a default may not be set yet
            inner = getattr(value, field.name)
            cast = _cast(inner, dtype)
            if cast is not inner:
                changed[field.name] = cast
    # Not setattr, which a frozen dataclass refuses.
    return _changed_copy(value, changed, object.__setattr__)


def _cast_sequence(value: Any, dtype: torch.dtype) -> Any:
    items = [_cast(inner, dtype) for inner in value]
    if all(item is inner for item, inner in zip(items, value, strict=True)):
        return value
    # A named tuple takes its entries one by one, a list or a tuple takes all of them as one
    # argument.
    is_named_tuple = hasattr(value, "_fields")
    return type(value)(*items) if is_named_tuple else type(value)(items)


def _changed_copy(value: Any, changed: Mapping[Any, Any], put: Callable[..., object]) -> Any:
    """A shallow copy with the changed entries; the value itself where there are none.

    A copy, since the caller's own mapping or dataclass must not change, and its class may take
    other arguments than its entries.
    """
    if not changed:
        return value
    other = copy.copy(value)
    for key, inner in changed.items():
        put(other, key, inner)
    return other


def _set_item(mapping: Any, key: object, value: object) -> None:
    mapping[key] = value
