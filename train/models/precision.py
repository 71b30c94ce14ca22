"""The types of a model's parameters and buffers: nothing is narrowed that the config does not say.

Parameters in float32, with or without autocast: what is narrower is widened, and nothing else is
touched. Parameters in bf16: floating-point parameters are cast; a buffer gets the type that its
constructor gives it with bf16 as the default type, so that a rotary table stays in float32.
float64: everything is widened.

Complex numbers stay complex; integers and 8-bit floats (quantised weights) keep their types.
`Module.to(dtype)` would make complex parameters and buffers real, and narrow every buffer (torch
2.13).
"""

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from train.errors import some
from train.randomness import Generators

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
NARROW = frozenset((torch.float16, torch.bfloat16))

Dtypes = Mapping[str, torch.dtype]
"""By the names of parameters and buffers."""


def widened(dtype: torch.dtype) -> torch.dtype:
    """What becomes of a type in a run in float64."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype in FLOATS else dtype


def cast_parameters(
    module: nn.Module, dtype: torch.dtype, construct: Callable[[], nn.Module]
) -> None:
    """Cast parameters and buffers in place; `dtype`: of the parameters.

    `construct` makes the same model again. For bf16 it is called on the meta device, where no
    memory is allocated and no number computed, to see which types a constructor gives its buffers.
    """
    constructed: Dtypes = {}
    if dtype == torch.bfloat16:
        constructed = _constructed_dtypes(module, construct)
    # By id, since `_apply` gives no names; parameters that are tied have one id and several names.
    unchanged = set()  # by id
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if constructed.get(name, dtype) != dtype:
            unchanged.add(id(tensor))

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in unchanged:
            return tensor
        return tensor.to(_cast_dtype(tensor.dtype, dtype))

    # As Module.to does: tied parameters stay tied, and recurrent layers flatten theirs again.
    untyped: Any = module
    untyped._apply(cast)


def _cast_dtype(current: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """What becomes of a tensor where parameters are in `dtype`."""
    if dtype == torch.float64:
        return widened(current)
    # In float32 only what is narrower is cast: a table that a model keeps in float64 stays.
    castable = FLOATS if dtype == torch.bfloat16 else NARROW
    return dtype if current in castable else current


def _constructed_dtypes(module: nn.Module, construct: Callable[[], nn.Module]) -> Dtypes:
    """The types that constructors give with bf16 as the default type.

    Of all buffers, and of the parameters of transformers' models.
    """
    # Models of transformers apart: from_pretrained keeps some of their parameters in float32, which
    # their constructor alone does not show.
    dtypes: dict[str, torch.dtype] = {}
    for path, model in _transformers_models(module):
        for name, dtype in _from_pretrained_dtypes(model).items():
            dtypes[path + name] = dtype
    others = []
    for name, buffer in module.named_buffers():
        if buffer.dtype in FLOATS and name not in dtypes:
            others.append(name)
    if not others:
        return dtypes
    constructed = {}
    try:
        with _meta_bf16():
            constructed = {name: buffer.dtype for name, buffer in construct().named_buffers()}
    # whatever a constructor does that needs numbers, such as reading a file
    except Exception:
        pass
    for name in others:
        dtypes[name] = constructed.get(name) or _guessed_dtype(module, name)
    return dtypes


def _guessed_dtype(module: nn.Module, name: str) -> torch.dtype:
    """Of a buffer whose constructor cannot be tried.

    A module with parameters of its own computes in their type. One without holds a table, which
    stays as it is: where that is wrong, the first forward pass fails; were it narrowed, nobody
    would notice.
    """
    owner = module.get_submodule(name.rpartition(".")[0])
    is_norm = isinstance(owner, nn.modules.batchnorm._NormBase)  # some have no parameters
    has_parameters = next(owner.parameters(recurse=False), None) is not None
    return torch.bfloat16 if is_norm or has_parameters else torch.float32


def _transformers_models(module: nn.Module, path: str = "") -> Iterator[tuple[str, Any]]:
    """(prefix of its names, model) of the outermost models of transformers in a module."""
    # By a method that all of them inherit, so that transformers need not be installed.
    if hasattr(type(module), "_from_config"):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _transformers_models(child, f"{path}{name}.")


def _from_pretrained_dtypes(model: Any) -> Dtypes:
    """As after from_pretrained(dtype=torch.bfloat16).

    The constructor's types, and float32 where the model's class asks for it.
    """
    try:
        with _meta_bf16():
            twin = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.bfloat16)
    except Exception:  # somebody's own model, which cannot be made without numbers
        return {}
    # Names, or parts of them: transformers keeps these in float32 in bf16 too, those without
    # "strict" in fp16 only.
    patterns = [name.replace("*", ".*") for name in model._keep_in_fp32_modules_strict or ()]
    dtypes = {}
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        is_kept = any(re.search(pattern, name) for pattern in patterns)
        dtypes[name] = torch.float32 if is_kept else tensor.dtype
    return dtypes


@contextmanager
def _meta_bf16() -> Iterator[None]:
    """What is constructed inside has shapes, and types with bf16 as the default, and no memory."""
    default = torch.get_default_dtype()
    # The constructor draws and warns a second time here: neither may be seen outside.
    with Generators().kept(), warnings.catch_warnings(action="ignore"), torch.device("meta"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def notes_on_precision(module: nn.Module, dtype: torch.dtype) -> list[str]:
    """For the screen: what is wider than the parameters."""
    if dtype != torch.bfloat16:
        return []
    wide = []
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dtype in (torch.float32, torch.float64):
            wide.append(name)
    if not wide:
        return []
    return [f"precision not in bf16, as their constructor makes them: {some(wide, 4)}"]
