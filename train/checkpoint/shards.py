"""Tensors that are sharded over the ranks, in a file for each rank: by rows, in the order of the
ranks.

They are read on any number of ranks, sharded or not: a rank maps the files, and touches the rows
that it needs.
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

from train.checkpoint.tensors import compact, from_storable, storable
from train.distributed.sharded import as_part, is_part, local, span
from train.errors import some

FIRST_ROWS = "first_rows"
"""In a file's metadata: {name: the row of the full tensor with which this shard begins}."""
ALIASES = "aliases"
"""In a file's metadata: {further name of a tied tensor: the name under which it is stored}."""
FILE_OF_RANK = re.compile(r"(.+)-rank-\d{5}\.safetensors")
ALIGNMENT = 8
"""Tensors in a file of safetensors begin at a multiple of it."""


@dataclass(frozen=True)
class StoredShards:
    """A stored tensor of which each file holds some rows."""

    shards: Sequence[tuple[int, Tensor]]
    """(its first row, the shard), in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        rows = sum(len(shard) for _, shard in self.shards)
        _, first = self.shards[0]
        return (rows, *first.shape[1:])

    @property
    def element_size(self) -> int:
        _, first = self.shards[0]
        return first.element_size()

    def rows(self, start: int, stop: int) -> Tensor:
        """A copy."""
        slices = []
        for first, shard in self.shards:
            # Row numbers relative to this shard; one that lies outside of the range gives no rows.
            slices.append(shard[max(start - first, 0) : max(stop - first, 0)])
        return torch.cat(slices)


Stored = Tensor | StoredShards
"""A tensor of a checkpoint, on the CPU; its memory is the file's until it is read."""


def full_tensor(stored: Stored) -> Tensor:
    if isinstance(stored, StoredShards):
        return stored.rows(0, stored.shape[0])
    return stored


def rows_of_rank(stored: Stored, like: Tensor) -> Tensor:
    """What this rank holds of `like`, a tensor of the same shape, sharded or not."""
    # Not sharded here: the checkpoint may come from more ranks than this run has.
    if not is_part(like):
        return from_storable(full_tensor(stored), like)
    start, stop = span(like)
    if isinstance(stored, StoredShards):
        return from_storable(stored.rows(start, stop), like)
    return from_storable(stored[start:stop], like)


def sharded_like(stored: Stored, like: Tensor) -> Tensor:
    """The stored tensor, sharded as `like` is; in full where `like` is, or has another shape."""
    if is_part(like) and tuple(stored.shape) == tuple(like.shape):
        return as_part(rows_of_rank(stored, like), like)
    return full_tensor(stored)


def shard_file(file: str, rank: int) -> str:
    """`file`: the one that holds what is not sharded."""
    return f"{Path(file).stem}-rank-{rank:05}.safetensors"


def shard_files_among(names: Iterable[str], file: str) -> list[str]:
    """Those of `names` that hold the ranks' shards beside `file`."""
    shard_files = []
    for name in names:
        match = FILE_OF_RANK.fullmatch(name)
        # Compared with the stem: model-rank-00000 and optimizer-rank-00000 lie in one folder.
        if match and match[1] == Path(file).stem:
            shard_files.append(name)
    return sorted(shard_files)


def write_shards(file: Path, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """This rank's rows of sharded tensors. `aliases`: {further name of a tied one: its name}."""
    shards = {}
    first_rows = {}
    for name, tensor in tensors.items():
        # A shard may be a view into something larger, all of which the file would else hold.
        shards[name] = storable(compact(local(tensor.detach())))
        first_rows[name] = span(tensor)[0]
    metadata = {FIRST_ROWS: json.dumps(first_rows), ALIASES: json.dumps(dict(aliases))}
    save_file(shards, str(file), metadata=metadata)


def read_shards(files: Iterable[Path]) -> dict[str, StoredShards]:
    """{name: its shards} of what all ranks wrote."""
    by_name: dict[str, list[tuple[int, Tensor]]] = {}
    # Each file is mapped, not read: a rank touches only the rows that it copies (rows_of_rank).
    for file in files:
        first_rows = json.loads(_metadata(file)[FIRST_ROWS])
        for name, shard in load_file(str(file)).items():
            by_name.setdefault(name, []).append((first_rows[name], shard))
    stored = {}
    for name, shards in by_name.items():
        # rows() and shape take them to be in order.
        stored[name] = StoredShards(sorted(shards, key=lambda shard: shard[0]))
    return stored


@torch.no_grad()
def read_rows(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Read what this rank holds of the module's tensors.

    Raises RuntimeError, and changes nothing, where names or shapes differ.
    """
    pairs: list[tuple[Stored, Tensor]] = []
    wrong = []
    names_of_module: set[str] = set()
    # All names and shapes are compared before anything is copied: a model that is half read would
    # train on, from a mixture.
    for names, tensor in by_names(module):
        names_of_module.update(names)
        # Under any of its names: a tied tensor is stored once.
        there = next((stored[name] for name in names if name in stored), None)
        if there is None:
            wrong.append(f"{names[0]} is not there")
        elif not _has_shape_of(there, tensor):
            there_shape = tuple(there.shape)
            wrong.append(
                f"size mismatch for {names[0]}: {there_shape} there, {tuple(tensor.shape)} here"
            )
        else:
            pairs.append((there, tensor))
    wrong += [f"{name} is there only" for name in stored if name not in names_of_module]
    if wrong:
        raise RuntimeError(some(wrong, 5))
    for there, tensor in pairs:
        local(tensor).copy_(rows_of_rank(there, tensor))


def _has_shape_of(stored: Stored, tensor: Tensor) -> bool:
    """Whether `stored` is the storable form of a tensor of this shape."""
    shape_of_row = tensor.shape[1:]
    if tensor.dtype == torch.complex128:  # stored with one dimension more
        shape_of_row = torch.view_as_real(local(tensor)).shape[1:]
    if tuple(stored.shape[1:]) != tuple(shape_of_row):
        return False
    # safetensors keeps 0-dim tensors as they are: they have no first dimension to compare.
    return tensor.dim() == 0 or stored.shape[0] == tensor.shape[0]


def by_names(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """The tensors of state_dict, each with all names that it has there."""
    # By identity: tied weights are one tensor under several names.
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    # keep_vars: detached copies would be new objects, and tied weights could not be recognised.
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

    Written tensor by tensor: its own save_file would have all of them in memory.
    """
    # All ranks have written their parts into this folder.
    names = [path.name for path in folder.iterdir()]
    shard_files = [folder / name for name in shard_files_among(names, file)]
    tensors: dict[str, Stored] = {**load_file(str(folder / file)), **read_shards(shard_files)}
    header = _header(folder / file, shard_files[0], tensors)
    # Padding by blanks, as the format has it, so that the tensors begin at a multiple of 8.
    header += b" " * (-len(header) % ALIGNMENT)
    with joined.open("wb") as out:
        out.write(len(header).to_bytes(8, "little"))
        out.write(header)
        # One tensor in memory at a time. Its bytes come in the order of the header's offsets.
        for stored in tensors.values():
            # As bytes: NumPy has no bf16.
            flat = full_tensor(stored).contiguous().reshape(-1)
            if flat.numel():
                out.write(flat.view(torch.uint8).numpy().data)


def _header(file: Path, shard_file: Path, tensors: Mapping[str, Stored]) -> bytes:
    """The header of one file of safetensors that holds `tensors` in their order."""
    types = _types(file) | _types(shard_file)
    # Tied weights are named in the metadata, as safetensors' save_model does it.
    aliases = json.loads(_metadata(shard_file)[ALIASES])
    entries: dict[str, object] = {
        "__metadata__": {"format": "pt", **_metadata(file), **aliases},
    }
    end = 0
    for name, stored in tensors.items():
        start = end
        if isinstance(stored, StoredShards):
            element_size = stored.element_size
        else:
            element_size = stored.element_size()
        end += math.prod(stored.shape) * element_size
        entries[name] = {
            "dtype": types[name],
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
    return json.dumps(entries).encode()
