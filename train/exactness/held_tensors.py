"""The tensors that model and task hold, by the path under which a reader finds them."""

import types
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

MAX_DEPTH = 6
"""How far objects inside one another are followed."""
MAX_ITEMS = 1000
"""A longer list or dict is not looked into."""
MAX_OBJECTS = 20_000
"""How many objects are looked into, of the model and of the task each."""

_OPAQUE = (str, bytes, int, float, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))

Members = list[tuple[str, Any]]
"""What an object holds: by how it is written behind the path of the object."""


def held_tensors(module: nn.Module, task: object) -> dict[str, Tensor]:
    """{path: tensor}, parameters included; each tensor once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, part in module.named_modules():
        path = f"the model.{name}" if name else "the model"
        tensors |= dict(_tensors_in(part, path, 0, seen, MAX_OBJECTS))
    # A limit of its own: a large model must not keep the task from being looked into.
    limit = len(seen) + MAX_OBJECTS
    tensors |= dict(_tensors_in(task, type(task).__name__, 0, seen, limit))
    return tensors


def _tensors_in(
    thing: Any, path: str, depth: int, seen: set[int], limit: int
) -> Iterator[tuple[str, Tensor]]:
    if id(thing) in seen or isinstance(thing, _OPAQUE):
        return
    if depth > MAX_DEPTH or len(seen) > limit:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
        return
    for name, member in _members_of(thing):
        yield from _tensors_in(member, f"{path}{name}", depth + 1, seen, limit)


def _members_of(thing: Any) -> Members:
    if isinstance(thing, partial):
        return [("", thing.func), ("", thing.args), ("", thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [("", thing.__self__)]
    if isinstance(thing, dict | list | tuple | set | frozenset):
        return _items_of(thing)
    attributes = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, nn.Module):
        for name in _OF_EVERY_MODULE:
            attributes.pop(name, None)
        # nn.Module keeps these three beside its attributes: a reader writes model.layer.weight.
        attributes |= {**thing._parameters, **thing._buffers, **thing._modules}
    elif not isinstance(thing, type):
        # Class attributes, which all objects of the class share; the object's own win.
        for kind in reversed(type(thing).__mro__[:-1]):
            attributes = {**vars(kind), **attributes}
    return [(f".{name}", member) for name, member in attributes.items()]


def _items_of(thing: Any) -> Members:
    if len(thing) > MAX_ITEMS:
        return []
    pairs = thing.items() if isinstance(thing, dict) else enumerate(thing)
    return [(f"[{key!r}]", member) for key, member in pairs]
