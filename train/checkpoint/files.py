"""What a checkpoint is made of: tensors in safetensors, everything else in JSON. Nothing in it can run code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from train.errors import UserError, ends_in_a_sentence

MODEL, TENSORS, TRAINER = "model.safetensors", "optimizer.safetensors", "trainer.json"


def write_state(folder: Path, module: nn.Module, state: Mapping[str, Any]) -> None:
    """The model under its own parameter names, tied weights once, and whatever `state` holds beside it."""
    save_model(module, str(folder / MODEL))
    tensors: dict[str, Tensor] = {}
    told = _told(state, "", tensors)
    save_file(_apart(tensors), str(folder / TENSORS))
    (folder / TRAINER).write_text(json.dumps(told), encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """`state` as it was given to write_state, its tensors on the CPU."""
    tensors = load_file(str(folder / TENSORS))
    state: dict[str, Any] = _read(json.loads((folder / TRAINER).read_text(encoding="utf-8")), tensors)
    return state


class OtherModel(UserError):
    """A checkpoint of another model than the config's."""


def read_model(folder: Path, module: nn.Module) -> None:
    """Raises OtherModel where names or shapes differ."""
    what = f"{folder} does not fit the model. Set: model.args as they were there"
    with ends_in_a_sentence(OtherModel, what, of=RuntimeError):  # not of a file that cannot be read
        load_model(module, str(folder / MODEL))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied ones as copies: a file of safetensors holds no two names for the same memory."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def _told(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with a name in the place of each tensor. Keys that are integers, and tuples, stay what they are.

    Raises TypeError for a value that is none of these: it would need pickle.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": [[key, _told(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_told(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    raise TypeError(f"a checkpoint holds tensors, numbers, texts, lists and dicts; {path} is a {type(value).__name__}")


def _read(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(told, dict):
        return told
    ((kind, content),) = told.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _read(item, tensors) for key, item in content}
    items = [_read(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
