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

from train.checkpoint.pieces import (
    Stored,
    by_names,
    file_of,
    pieces_among,
    read_pieces,
    read_rows,
    whole,
    write_pieces,
)
from train.checkpoint.tensors import alone, known, restored, separate
from train.disk import Unreadable, read_json
from train.distributed.sharded import is_divided, is_part, local
from train.errors import UserError, ends_in_a_sentence, print_error
from train.redaction import clean_known

KEYS = (bool, int, float, str)
LARGEST = 2**30
"""Bytes of trainer.json: it grows with what parts and optimizers hold beside tensors."""
MODEL, TENSORS, TRAINER = "model.safetensors", "optimizer.safetensors", "trainer.json"


def write_state(
    folder: Path, module: nn.Module, state: Mapping[str, Any], rank: int = 0
) -> list[str]:
    """The model's tensors under its own names, tied weights once, and whatever `state` holds beside
    it.

    Of tensors that are divided among the ranks each rank writes its part, and rank 0 all else.
    Returns the names of this rank's files.
    """
    written = write_model(folder, MODEL, module, rank)
    tensors: dict[str, Tensor] = {}
    _told(state, "", tensors)
    divided = {name: tensor for name, tensor in tensors.items() if is_part(tensor)}
    if divided:
        written.append(file_of(TENSORS, rank))
        write_pieces(folder / written[-1], divided, {})
    if rank == 0:
        write_value(folder / TRAINER, folder / TENSORS, state)
        written += [TENSORS, TRAINER]
    return written


def write_model(folder: Path, file: str, module: nn.Module, rank: int = 0) -> list[str]:
    """As write_state does, of the model alone."""
    written = []
    divided, aliases = {}, {}
    for names, tensor in by_names(module):
        if is_part(tensor):
            divided[names[0]] = tensor
            aliases.update(dict.fromkeys(names[1:], names[0]))
    if divided:
        written.append(file_of(file, rank))
        write_pieces(folder / written[0], divided, aliases)
    if rank == 0:
        write_tensors(folder / file, module)
        written.append(file)
    return written


def read_state(folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
    """`state` as it was given to write_state, its tensors on the CPU; those that were divided are
    Pieces.

    `files`: the names of all files of the checkpoint.
    """
    state = read_value(
        folder / TRAINER, folder / TENSORS, [folder / name for name in pieces_among(files, TENSORS)]
    )
    if not isinstance(state, dict):
        raise Unreadable(f"{folder / TRAINER} is damaged: it holds no mapping")
    return state


class OtherModel(UserError):
    """A checkpoint of another model than the config's."""


class NotSavable(UserError):
    """A model of which no checkpoint could be made."""


def read_model(folder: Path, module: nn.Module, files: Collection[str] = ()) -> None:
    """Raises OtherModel where names or shapes differ. `files`: the names of all files of the
    checkpoint.
    """
    what = f"{folder} does not fit the model. Set: model.args as they were there"
    pieces = [folder / name for name in pieces_among(files, MODEL)]
    with ends_in_a_sentence(OtherModel, what, of=RuntimeError):  # not of a file that cannot be read
        if pieces or is_divided(module):
            read_rows(module, {**load_file(str(folder / MODEL)), **read_pieces(pieces)})
        else:
            read_tensors(folder / MODEL, module)


def check_savable(module: nn.Module) -> None:
    """Try what a save needs, before there is anything to lose. Raises NotSavable."""
    with ends_in_a_sentence(
        NotSavable, "a checkpoint cannot hold the model, since its state_dict() raises"
    ):
        state = module.state_dict()
    for name, value in state.items():
        what = (
            f"a checkpoint cannot hold {name!r} of the model's state_dict(). Change what "
            "get_extra_state() returns"
        )
        if isinstance(value, Tensor):
            what = (
                f"a checkpoint cannot hold {name!r} of the model. Register it with "
                "persistent=False, or convert it"
            )
        with ends_in_a_sentence(NotSavable, what):
            _try(local(value) if isinstance(value, Tensor) else value, name)


def _try(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        told = json.dumps(_told(value, name, {}))
        if clean_known(told) != told:
            raise ValueError(
                "it holds a secret, which would stay on disk; what a run resumes from is never "
                "edited"
            )
        return
    if value.is_meta or value.layout != torch.strided:
        raise TypeError(f"a tensor on {value.device} with layout {value.layout}")
    save({name: known(value[(slice(0, 1),) * value.dim()])})


@dataclass(frozen=True)
class _Tensors:
    """A module's tensors, in the form in which safetensors' functions ask a module for them. All
    else: ExtraState.
    """

    module: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        state = self.module.state_dict()
        tensors = {name: x for name, x in state.items() if isinstance(x, Tensor) and not is_part(x)}
        # A piece of something larger is stored as a tensor like others; tied ones are found by
        # safetensors.
        return {name: known(alone(x)) for name, x in tensors.items()}

    def load_state_dict(
        self, stored: Mapping[str, Tensor], strict: bool
    ) -> tuple[list[str], list[str]]:
        own = self.module.state_dict()
        given = {name: restored(x, own[name]) if name in own else x for name, x in stored.items()}
        missing, unexpected = self.module.load_state_dict(given, strict=strict)
        return [name for name in missing if isinstance(own.get(name), Tensor)], unexpected


def write_tensors(file: Path, module: nn.Module) -> None:
    shown: Any = _Tensors(module)
    save_model(shown, str(file))


def read_tensors(file: Path, module: nn.Module, strict: bool = True) -> tuple[list[str], list[str]]:
    """(names missing there, names that are there only). Raises RuntimeError where shapes differ, or
    with `strict` names.
    """
    shown: Any = _Tensors(module)
    missing, unexpected = load_model(shown, str(file), strict=strict)
    return list(missing), list(unexpected)


@dataclass(frozen=True)
class ExtraState:
    """What a module's state_dict holds that is no tensor: that of get_extra_state, which
    set_extra_state takes back.
    """

    module: nn.Module

    def state_dict(self) -> dict[str, Any]:
        return {
            name: x for name, x in self.module.state_dict().items() if not isinstance(x, Tensor)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.module.load_state_dict(state, strict=False)


def write_value(file: Path, tensor_file: Path, value: Any) -> None:
    """Numbers, texts, tensors, and lists and dicts of these. Raises TypeError for anything else.

    Of a tensor that is divided among the ranks only the name is written.
    """
    tensors: dict[str, Tensor] = {}
    told = json.dumps(_told(value, "", tensors))
    if clean_known(told) != told:
        print_error(
            f"{file} holds a secret, from the model's get_extra_state(): what a run resumes from "
            "is not edited"
        )
    save_file(
        separate({name: x for name, x in tensors.items() if not is_part(x)}), str(tensor_file)
    )
    file.write_text(told, encoding="utf-8")


def read_value(file: Path, tensor_file: Path, pieces: Iterable[Path] = ()) -> Any:
    """What write_value was given, its tensors on the CPU; those that `pieces` hold, as Pieces."""
    told = read_json(file, (dict, list, str, int, float, type(None)), LARGEST)
    return _read(told, {**load_file(str(tensor_file)), **read_pieces(pieces)})


def _told(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, with a name in the place of each tensor. Keys that are integers, and tuples,
    stay what they are.

    Raises TypeError for a value that is none of these: it would need pickle.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        while path in tensors:  # the keys 1 and "1"
            path += "'"
        tensors[path] = known(value)
        return {"complex128" if value.dtype == torch.complex128 else "tensor": path}
    if isinstance(value, Mapping) and all(isinstance(key, KEYS) for key in value):
        return {
            "dict": [[key, _told(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_told(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    kind = f"{type(value).__name__} {str(value)[:40]}"
    raise TypeError(
        f"a checkpoint holds tensors, numbers, texts, lists and dicts; {path} is a {kind}"
    )


def _read(told: Any, tensors: Mapping[str, Stored]) -> Any:
    if not isinstance(told, dict):
        return told
    ((kind, content),) = told.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "complex128":
        return torch.view_as_complex(whole(tensors[content]))
    if kind == "dict":
        return {key: _read(item, tensors) for key, item in content}
    items = [_read(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
