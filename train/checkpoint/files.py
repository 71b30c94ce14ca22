"""What a checkpoint is made of: tensors in safetensors, everything else in JSON. Nothing in it can
run code.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save, save_file, save_model
from torch import Tensor, nn

from train.checkpoint.shards import (
    Stored,
    by_names,
    full_tensor,
    read_rows,
    read_shards,
    shard_file,
    shard_files_among,
    write_shards,
)
from train.checkpoint.tensors import compact, from_storable, separate, storable
from train.disk import Unreadable, read_json
from train.distributed.sharded import is_divided, is_part, local
from train.errors import UserError, ends_in_a_sentence, print_error
from train.redaction import clean_known

KEY_TYPES = (bool, int, float, str)
"""Of mappings: what JSON or a pair in it can hold."""
LARGEST = 2**30
"""Bytes of trainer.json: it grows with what parts and optimizers hold beside tensors."""
MODEL = "model.safetensors"
TENSORS = "optimizer.safetensors"
TRAINER = "trainer.json"


class OtherModel(UserError):
    """A checkpoint of another model than the config's."""


class NotSavable(UserError):
    """A model of which no checkpoint could be made."""


# All of a checkpoint.


def write_state(
    folder: Path, module: nn.Module, state: Mapping[str, Any], rank: int = 0
) -> list[str]:
    """Write the model's tensors under its own names, tied weights once, and what `state` holds.

    Of sharded tensors each rank writes its shard, and rank 0 all else. Gives the names of this
    rank's files.
    """
    written = write_model(folder, MODEL, module, rank)
    # Called for the tensors alone: each rank must know which of them are sharded.
    tensors: dict[str, Tensor] = {}
    _to_json(state, "", tensors)
    # Only the sharded ones here. Each rank writes its own file, so no rank gathers a full tensor.
    sharded = {name: tensor for name, tensor in tensors.items() if is_part(tensor)}
    if sharded:
        name = shard_file(TENSORS, rank)
        write_shards(folder / name, sharded, {})
        written.append(name)
    if rank == 0:
        write_value(folder / TRAINER, folder / TENSORS, state)
        written += [TENSORS, TRAINER]
    return written


def read_state(folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
    """`state` as write_state got it, its tensors on the CPU; those that were sharded are
    StoredShards.

    `files`: the names of all files of the checkpoint.
    """
    shard_files = [folder / name for name in shard_files_among(files, TENSORS)]
    state = read_value(folder / TRAINER, folder / TENSORS, shard_files)
    if not isinstance(state, dict):
        raise Unreadable(f"{folder / TRAINER} is damaged: it holds no mapping")
    return state


# A module.


def write_model(folder: Path, file: str, module: nn.Module, rank: int = 0) -> list[str]:
    """As write_state does, of the model alone."""
    written = []
    sharded = {}
    aliases = {}
    for names, tensor in by_names(module):
        if is_part(tensor):
            # Under its first name; the others are in the metadata, since safetensors refuses one
            # tensor twice.
            name, *further_names = names
            sharded[name] = tensor
            aliases.update(dict.fromkeys(further_names, name))
    if sharded:
        written.append(shard_file(file, rank))
        write_shards(folder / written[0], sharded, aliases)
    if rank == 0:
        write_tensors(folder / file, module)
        written.append(file)
    return written


def read_model(folder: Path, module: nn.Module, files: Collection[str] = ()) -> None:
    """Raises OtherModel where names or shapes differ. `files`: the names of all files of the
    checkpoint.
    """
    what = f"{folder} does not fit the model. Set: model.args as they were there"
    shard_files = [folder / name for name in shard_files_among(files, MODEL)]
    # RuntimeError alone: a file that cannot be read raises others.
    with ends_in_a_sentence(OtherModel, what, of=RuntimeError):
        # Sharded there or here: then tensors are read by rows, whatever the other side was.
        if shard_files or is_divided(module):
            read_rows(module, {**load_file(str(folder / MODEL)), **read_shards(shard_files)})
        else:
            read_tensors(folder / MODEL, module)


def check_savable(module: nn.Module) -> None:
    """Try what a save needs, before there is anything to lose. Raises NotSavable."""
    with ends_in_a_sentence(
        NotSavable, "a checkpoint cannot hold the model, since its state_dict() raises"
    ):
        state = module.state_dict()
    for name, value in state.items():
        if isinstance(value, Tensor):
            what = (
                f"a checkpoint cannot hold {name!r} of the model. Register it with "
                "persistent=False, or convert it"
            )
            with ends_in_a_sentence(NotSavable, what):
                _try_tensor(local(value), name)
        else:
            what = (
                f"a checkpoint cannot hold {name!r} of the model's state_dict(). Change what "
                "get_extra_state() returns"
            )
            with ends_in_a_sentence(NotSavable, what):
                _try_extra_state(value, name)


def _try_tensor(tensor: Tensor, name: str) -> None:
    if tensor.is_meta or tensor.layout != torch.strided:
        raise TypeError(f"a tensor on {tensor.device} with layout {tensor.layout}")
    # One element is enough to learn whether safetensors has the type.
    # A slice of each dimension, which works for 0-dim tensors too; the whole one may take GiBs.
    one_element = tensor[(slice(0, 1),) * tensor.dim()]
    save({name: storable(one_element)})


def _try_extra_state(value: Any, name: str) -> None:
    text = json.dumps(_to_json(value, name, {}))
    if clean_known(text) != text:
        raise ValueError(
            "it holds a secret, which would stay on disk; what a run resumes from is never edited"
        )


@dataclass(frozen=True)
class _Tensors:
    """A module's tensors, in the form in which safetensors' functions ask a module for them. All
    else: ExtraState.
    """

    module: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {}
        for name, value in self.module.state_dict().items():
            if isinstance(value, Tensor) and not is_part(value):
                # A view into something larger is stored like any other tensor. Tied ones are left
                # as they are: safetensors finds them.
                tensors[name] = storable(compact(value))
        return tensors

    def load_state_dict(
        self, stored: Mapping[str, Tensor], strict: bool
    ) -> tuple[list[str], list[str]]:
        of_module = self.module.state_dict()
        # A copy, as types are brought back below: complex128 was stored as pairs of numbers.
        state = dict(stored)
        for name, tensor in stored.items():
            if name in of_module:
                state[name] = from_storable(tensor, of_module[name])
        missing, unexpected = self.module.load_state_dict(state, strict=strict)
        # What else is missing there belongs to ExtraState.
        missing_tensors = [name for name in missing if isinstance(of_module.get(name), Tensor)]
        return missing_tensors, unexpected


def write_tensors(file: Path, module: nn.Module) -> None:
    tensors: Any = _Tensors(module)
    save_model(tensors, str(file))


def read_tensors(file: Path, module: nn.Module, strict: bool = True) -> tuple[list[str], list[str]]:
    """Gives (names missing there, names that are there only).

    Raises RuntimeError where shapes differ, or with `strict` names.
    """
    tensors: Any = _Tensors(module)
    missing, unexpected = load_model(tensors, str(file), strict=strict)
    return list(missing), list(unexpected)


@dataclass(frozen=True)
class ExtraState:
    """What a module's state_dict holds beside tensors: that of get_extra_state, which
    set_extra_state takes back.
    """

    module: nn.Module

    def state_dict(self) -> dict[str, Any]:
        state = self.module.state_dict()
        return {name: value for name, value in state.items() if not isinstance(value, Tensor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            # strict=False: the tensors are in other files, and would count as missing.
            self.module.load_state_dict(state, strict=False)


# Values: numbers, texts, tensors, and lists and dicts of these.


def write_value(file: Path, tensor_file: Path, value: Any) -> None:
    """Raises TypeError for what is no value. Of a sharded tensor only the name is written."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_to_json(value, "", tensors))
    # Reported and not edited: an edited state would resume as another run.
    if clean_known(text) != text:
        print_error(
            f"{file} holds a secret, from the model's get_extra_state(): what a run resumes from "
            "is not edited"
        )
    full = {name: tensor for name, tensor in tensors.items() if not is_part(tensor)}
    save_file(separate(full), str(tensor_file))
    file.write_text(text, encoding="utf-8")


def read_value(file: Path, tensor_file: Path, shard_files: Iterable[Path] = ()) -> Any:
    """What write_value got, its tensors on the CPU; those of `shard_files` as StoredShards."""
    encoded = read_json(file, (dict, list, str, int, float, type(None)), LARGEST)
    return _from_json(encoded, {**load_file(str(tensor_file)), **read_shards(shard_files)})


def _to_json(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` for JSON; each tensor goes into `tensors`, and its name takes its place.

    A dict or a list becomes {kind: content}: keys that are integers, and tuples, come back as they
    were. Raises TypeError for a value that is none of these: it would need pickle.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        while path in tensors:  # the keys 1 and "1"
            path += "'"
        tensors[path] = storable(value)
        return {"complex128" if value.dtype == torch.complex128 else "tensor": path}
    if isinstance(value, Mapping) and all(isinstance(key, KEY_TYPES) for key in value):
        pairs = []
        # Pairs and not an object: JSON's keys are texts, and an optimizer's state has integers for
        # keys.
        for key, item in value.items():
            pairs.append([key, _to_json(item, f"{path}/{key}", tensors)])
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_to_json(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    raise TypeError(
        "a checkpoint holds tensors, numbers, texts, lists and dicts; "
        f"{path} is a {type(value).__name__} {str(value)[:40]}"
    )


def _from_json(encoded: Any, tensors: Mapping[str, Stored]) -> Any:
    if not isinstance(encoded, dict):
        return encoded
    # One key alone: `_to_json` writes dicts as {"dict": pairs}, so none can be mistaken for a
    # marker.
    ((kind, content),) = encoded.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "complex128":
        return torch.view_as_complex(full_tensor(tensors[content]))
    if kind == "dict":
        return {key: _from_json(item, tensors) for key, item in content}
    items = [_from_json(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
