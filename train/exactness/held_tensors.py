"""The tensors that model and task hold, by the path under which a reader finds them."""

import types
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

# objects inside objects, members of one, and objects that are looked into
DEEPEST, LONGEST, MOST = 6, 1000, 20_000

_OPAQUE = (str, bytes, int, float, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def held_tensors(module: nn.Module, task: object) -> dict[str, Tensor]:
    """{path: tensor}, parameters included; each tensor once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, part in module.named_modules():
        found |= dict(_tensors(part, ".".join(filter(None, ["the model", name])), 0, seen, MOST))
    return found | dict(_tensors(task, type(task).__name__, 0, seen, len(seen) + MOST))


def _tensors(
    thing: Any, path: str, depth: int, seen: set[int], most: int
) -> Iterator[tuple[str, Tensor]]:
    if id(thing) in seen or depth > DEEPEST or len(seen) > most or isinstance(thing, _OPAQUE):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield path, thing
        return
    for name, member in _members(thing):
        yield from _tensors(member, f"{path}{name}", depth + 1, seen, most)


def _members(thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, partial):
        return [("", thing.func), ("", thing.args), ("", thing.keywords)]
    if isinstance(thing, types.MethodType):
        return [("", thing.__self__)]
    if isinstance(thing, dict | list | tuple | set | frozenset):
        pairs = thing.items() if isinstance(thing, dict) else enumerate(thing)
        return [(f"[{key!r}]", member) for key, member in pairs] if len(thing) <= LONGEST else []
    attributes = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, nn.Module):
        attributes = {
            name: member for name, member in attributes.items() if name not in _OF_EVERY_MODULE
        }
        attributes |= {**thing._parameters, **thing._buffers, **thing._modules}
    elif not isinstance(thing, type):
        # What its class holds: the attributes of all objects of it.
        for kind in reversed(type(thing).__mro__[:-1]):
            attributes = {**vars(kind), **attributes}
    return [(f".{name}", member) for name, member in attributes.items()]
