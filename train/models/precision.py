"""In which precision a model holds its numbers and is fed them: nobody's numbers are narrowed
behind their back.

Parameters in float32, with or without autocast: what is narrower is widened, and nothing else is
touched. Parameters in bf16: floating parameters are cast; a buffer gets the type that its
constructor gives it under that default type, so that a rotary table stays in float32.
float64: everything is widened.

Complex numbers stay complex, whole numbers and 8-bit floats (quantised weights) what they are.
`Module.to(dtype)` would make complex parameters and buffers real, and narrow every buffer (torch
2.13).
"""

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from train.errors import some
from train.randomness import Generators

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
NARROW = frozenset((torch.float16, torch.bfloat16))

Dtypes = Mapping[str, torch.dtype]
"""By the names of parameters and buffers."""


def widened(own: torch.dtype) -> torch.dtype:
    """What a number of that type is in a run in float64."""
    if own.is_complex:
        return torch.complex128
    return torch.float64 if own in FLOATS else own


def cast_parameters(
    module: nn.Module, dtype: torch.dtype, construct: Callable[[], nn.Module]
) -> None:
    """Bring parameters and buffers to the precision of a run, in place; `dtype`: of the parameters.

    `construct` makes the same model again. It is asked, on the meta device, where no memory is
    taken and no number computed, which types a constructor gives its buffers.
    """
    made = _constructed(module, construct) if dtype == torch.bfloat16 else {}
    kept = set()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if made.get(name, dtype) != dtype:
            kept.add(id(tensor))

    def cast(tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in kept else tensor.to(_held_as(tensor.dtype, dtype))

    # As Module.to does: tied parameters stay tied, and recurrent layers look at theirs again.
    untyped: Any = module
    untyped._apply(cast)


def _held_as(own: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    if dtype == torch.float64:
        return widened(own)
    castable = FLOATS if dtype == torch.bfloat16 else NARROW
    return dtype if own in castable else own


def _constructed(module: nn.Module, construct: Callable[[], nn.Module]) -> Dtypes:
    """The types of all buffers, and of the parameters of transformers' models, as constructors give
    them under bf16.
    """
    found: dict[str, torch.dtype] = {}
    for path, part in _of_transformers(module):
        for name, dtype in _as_transformers_does(part).items():
            found[path + name] = dtype
    others = [name for name, b in module.named_buffers() if b.dtype in FLOATS and name not in found]
    if not others:
        return found
    try:
        with _meta():
            made = {name: buffer.dtype for name, buffer in construct().named_buffers()}
    # whatever a constructor does that cannot be done without numbers, such as reading a file
    except Exception:
        made = {}
    return found | {name: made.get(name) or _by_place(module, name) for name in others}


def _by_place(module: nn.Module, name: str) -> torch.dtype:
    """Where a constructor cannot be asked: a module with parameters of its own computes in their
    type.

    One that has none holds a table, which stays as it is. Where that does not fit, the first
    forward pass fails; were it narrowed, nobody would see it.
    """
    owner = module.get_submodule(name.rpartition(".")[0])
    is_norm = isinstance(owner, nn.modules.batchnorm._NormBase)  # some have no parameters
    follows = is_norm or any(True for _ in owner.parameters(recurse=False))
    return torch.bfloat16 if follows else torch.float32


def _of_transformers(module: nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """The outermost models of transformers in a module, below their names."""
    if hasattr(type(module), "_from_config"):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _of_transformers(child, f"{path}{name}.")


def _as_transformers_does(model: Any) -> Dtypes:
    """What from_pretrained(dtype=torch.bfloat16) gives: the constructor's types, and float32 where
    the model says.
    """
    try:
        with _meta():
            twin = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.bfloat16)
    except Exception:  # a model of somebody else's, that cannot be made without numbers
        return {}
    # Names, or parts of them: transformers keeps these in float32 in bf16 too, those without
    # "strict" in fp16 only.
    kept = [pattern.replace("*", ".*") for pattern in model._keep_in_fp32_modules_strict or ()]
    found = {}
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        found[name] = torch.float32 if any(re.search(each, name) for each in kept) else tensor.dtype
    return found


@contextmanager
def _meta() -> Iterator[None]:
    """What is constructed inside has types and shapes and nothing else."""
    default = torch.get_default_dtype()
    with Generators().kept(), warnings.catch_warnings(action="ignore"), torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def notes_on_precision(module: nn.Module, dtype: torch.dtype) -> list[str]:
    """For the screen: what is held wider than the parameters."""
    if dtype != torch.bfloat16:
        return []
    tensors = [*module.named_parameters(), *module.named_buffers()]
    wide = [name for name, tensor in tensors if tensor.dtype in (torch.float32, torch.float64)]
    if not wide:
        return []
    return [f"precision not in bf16, as their constructor makes them: {some(wide, 4)}"]


def open_door(module: nn.Module, dtype: torch.dtype) -> None:
    """From here on the floating tensors among the arguments of the module arrive in the type of its
    parameters.

    Also nested ones. Finite numbers stay finite: 3.4e38 in bf16 is the largest that there is. A
    task's targets, weights and masks keep their types. A hook on the plain module: it works inside
    every wrapper, compiled, and in copies.
    """
    module.register_forward_pre_hook(partial(_let_in, dtype), with_kwargs=True)


@contextmanager
def door_of(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, floating arguments arrive in `dtype`: the parameters of the module are of another
    type for a while.
    """
    hooks = module._forward_pre_hooks
    kept = dict(hooks)
    for key, hook in kept.items():
        if isinstance(hook, partial) and hook.func is _let_in:
            hooks[key] = partial(_let_in, dtype)
    try:
        yield
    finally:
        hooks.update(kept)


def _let_in(dtype: torch.dtype, module: nn.Module, args: Any, kwargs: Any) -> Any:
    # Called in every micro-step: nothing is called where all arguments are as they should be.
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) is not Tensor or (value.dtype is not dtype and value.dtype in FLOATS):
            return _cast(args, dtype), _cast(kwargs, dtype)
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same value with its floating tensors in `dtype`; the value itself where there is nothing
    to cast.
    """
    if isinstance(value, Tensor):
        return _cast_tensor(value, dtype)
    if isinstance(value, Mapping):
        return _with(value, {key: _cast(inner, dtype) for key, inner in value.items()}, _set_item)
    if isinstance(value, list | tuple):
        items = [_cast(inner, dtype) for inner in value]
        if all(map(_same, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        cast = {name: _cast(getattr(value, name), dtype) for name in fields if hasattr(value, name)}
        return _with(value, cast, object.__setattr__, getattr)
    return value


def _with(
    value: Any,
    cast: dict[Any, Any],
    put: Callable[..., object],
    get: Callable[..., Any] | None = None,
) -> Any:
    """A copy that holds what was cast."""
    held = get or type(value).__getitem__
    changed = {key: inner for key, inner in cast.items() if inner is not held(value, key)}
    if not changed:
        return value
    other = copy.copy(value)
    for key, inner in changed.items():
        put(other, key, inner)
    return other


def _set_item(mapping: Any, key: object, value: object) -> None:
    mapping[key] = value


def _same(one: object, other: object) -> bool:
    return one is other


def _cast_tensor(value: Tensor, dtype: torch.dtype) -> Tensor:
    wanted = widened(value.dtype) if dtype == torch.float64 else dtype
    if value.dtype == wanted or (value.dtype not in FLOATS and dtype != torch.float64):
        return value
    if not value.is_complex() and torch.finfo(wanted).max < torch.finfo(value.dtype).max:
        limit = torch.finfo(wanted).max
        value = torch.where(value.isinf(), value, value.clamp(-limit, limit))
    return value.to(wanted)
