"""Tensors that are divided among the ranks, in a file for each rank: by rows, in the order of the
ranks.

Read on any number of ranks, divided or not: a rank maps the files, and touches the rows that it
needs.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.checkpoint.tensors import alone, known, restored
from train.distributed.sharded import as_part, is_part, local, span
from train.errors import some

FIRST_ROWS = "first_rows"
"""In a file's metadata: {name: the row of the whole tensor with which this part begins}."""
ALIASES = "aliases"
"""In a file's metadata: {further name of a tied tensor: the name under which it is stored}."""
RANK = re.compile(r"(.+)-rank-\d{5}\.safetensors")


@dataclass(frozen=True)
class Pieces:
    """A stored tensor of which each file holds some rows."""

    parts: Sequence[tuple[int, Tensor]]
    """(its first row, the part), in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(part) for _, part in self.parts), *self.parts[0][1].shape[1:])

    def rows(self, start: int, stop: int) -> Tensor:
        """A copy."""
        found = []
        for first, part in self.parts:
            found.append(part[max(start - first, 0) : max(stop - first, 0)])
        return torch.cat(found)


Stored = Tensor | Pieces
"""A tensor of a checkpoint, on the CPU; its memory is the file's until it is read."""


def whole(stored: Stored) -> Tensor:
    return stored.rows(0, stored.shape[0]) if isinstance(stored, Pieces) else stored


def own_rows(stored: Stored, wanted: Tensor) -> Tensor:
    """What this rank holds of `wanted`, a tensor of the same shape, divided among the
    ranks or not.
    """
    if not is_part(wanted):
        return restored(whole(stored), wanted)
    start, stop = span(wanted)
    return restored(
        stored.rows(start, stop) if isinstance(stored, Pieces) else stored[start:stop], wanted
    )


def as_divided(stored: Stored, like: Tensor) -> Tensor:
    """The stored tensor, divided as `like` is; whole where `like` is whole, or of another shape."""
    if is_part(like) and tuple(stored.shape) == tuple(like.shape):
        return as_part(own_rows(stored, like), like)
    return whole(stored)


def file_of(file: str, rank: int) -> str:
    """`file`: the one that holds what is not divided."""
    return f"{Path(file).stem}-rank-{rank:05}.safetensors"


def pieces_among(names: Iterable[str], file: str) -> list[str]:
    """Those of `names` that hold the ranks' parts beside `file`."""
    matches = (RANK.fullmatch(name) for name in names)
    return sorted(match[0] for match in matches if match and match[1] == Path(file).stem)


def write_pieces(file: Path, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """This rank's rows of tensors that are divided. `aliases`: {further name of a tied one: its
    name}.
    """
    first_rows = {name: span(tensor)[0] for name, tensor in tensors.items()}
    parts = {name: known(alone(local(tensor.detach()))) for name, tensor in tensors.items()}
    save_file(
        parts,
        str(file),
        metadata={FIRST_ROWS: json.dumps(first_rows), ALIASES: json.dumps(dict(aliases))},
    )


def read_pieces(files: Iterable[Path]) -> dict[str, Pieces]:
    """{name: its pieces} of what all ranks wrote."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for file in files:
        first_rows = json.loads(_metadata(file)[FIRST_ROWS])
        for name, part in load_file(str(file)).items():
            found.setdefault(name, []).append((first_rows[name], part))
    return {name: Pieces(sorted(parts, key=lambda part: part[0])) for name, parts in found.items()}


@torch.no_grad()
def read_rows(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """What this rank holds of the module's tensors. Raises RuntimeError, and changes nothing, where
    names or shapes differ.
    """
    found: list[tuple[Stored, Tensor]] = []
    wrong, known_names = [], set()
    for names, tensor in by_names(module):
        known_names.update(names)
        there = next((stored[name] for name in names if name in stored), None)
        shape = (
            torch.view_as_real(local(tensor)).shape[1:]
            if tensor.dtype == torch.complex128
            else tensor.shape[1:]
        )
        if there is None:
            wrong.append(f"{names[0]} is not there")
        elif tuple(there.shape[1:]) != tuple(shape) or (
            tensor.dim() and there.shape[0] != tensor.shape[0]
        ):
            wrong.append(
                f"size mismatch for {names[0]}: {tuple(there.shape)} there, {tuple(tensor.shape)} "
                "here"
            )
        else:
            found.append((there, tensor))
    wrong += [f"{name} is there only" for name in stored if name not in known_names]
    if wrong:
        raise RuntimeError(some(wrong, 5))
    for there, tensor in found:
        local(tensor).copy_(own_rows(there, tensor))


def by_names(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """The tensors of state_dict, each with all names that it has there."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
    return [(names[key], tensor) for key, tensor in tensors.items()]


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as opened:
        return opened.metadata() or {}


def _types(file: Path) -> dict[str, str]:
    """{tensor: its type, in the words of the format}"""
    with safe_open(str(file), framework="pt") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in opened.offset_keys()}


def join(folder: Path, file: str, joined: Path) -> None:
    """What write_model put into `folder`, as one file of safetensors (its format:
    github.com/huggingface/safetensors).

    Written tensor by tensor, where its own save_file would have all of them in memory.
    """
    files = [folder / name for name in pieces_among((path.name for path in folder.iterdir()), file)]
    tensors: dict[str, Stored] = {**load_file(str(folder / file)), **read_pieces(files)}
    types = _types(folder / file) | _types(files[0])
    aliases = json.loads(_metadata(files[0])[ALIASES])
    # Tied weights: as safetensors' save_model writes them.
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", **_metadata(folder / file), **aliases}
    }
    end = 0
    for name, stored in tensors.items():
        start = end
        kind = stored.parts[0][1] if isinstance(stored, Pieces) else stored
        end += math.prod(stored.shape) * kind.element_size()
        header[name] = {
            "dtype": types[name],
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)  # tensors begin at a multiple of 8
    with joined.open("wb") as out:
        out.write(len(told).to_bytes(8, "little") + told)
        for stored in tensors.values():
            flat = whole(stored).contiguous().reshape(-1)
            if flat.numel():
                out.write(flat.view(torch.uint8).numpy().data)
