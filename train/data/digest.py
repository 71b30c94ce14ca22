"""What the data of a split is, in one short text, which ranks and later starts of a run compare.

Files count by their names, sizes, first and last 64 KiB; what a function or the Hub gives by its
content; a stream of these by its list of shards.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, IterableDataset

from train.errors import counted

END = 2**16
"""Bytes at both ends of a file that are looked at."""

LARGE = 2**30
"""Bytes of a table on the disk above which only its first and last rows count."""

ROWS = 1000  # at both ends of a large table


def digest_of_files(files: Sequence[Path], root: Path) -> str:
    """Of files below `root`, or of `root` itself, wherever that lies."""
    hasher = hashlib.sha256()
    total = 0
    # Sorted, since each file system lists them in an order of its own.
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if path != root else path.name
        size = path.stat().st_size
        total += size
        # The zero bytes keep name and size apart, which could else be read in two ways.
        hasher.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            hasher.update(file.read(END))
            file.seek(max(0, size - END))
            hasher.update(file.read(END))
    return f"{counted(len(files), 'file')} of {total:,} bytes, sha256 {_short(hasher)}"


def digest_of_rows(rows: Dataset | IterableDataset) -> str:
    """Of what is no file of the user's."""
    hasher = hashlib.sha256()
    if isinstance(rows, IterableDataset):
        for leaf in _leaves(_arguments(rows._ex_iterable)):
            hasher.update(f"{leaf}\0".encode())
        return f"a stream of {counted(rows.num_shards, 'shard')}, sha256 {_short(hasher)}"
    is_on_disk = bool(rows.cache_files)
    _add(hasher, rows.data.table, is_on_disk)
    if rows._indices is not None:  # rows that were chosen, in their order
        _add(hasher, rows._indices.table, is_on_disk)
    return f"{len(rows):,} rows, sha256 {_short(hasher)}"


class _Sink(io.RawIOBase):
    """A file that hashes what is written into it."""

    def __init__(self, hasher: Any) -> None:
        super().__init__()
        self._hasher = hasher

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._hasher.update(content)
        return len(content)


def _add(hasher: Any, table: pa.Table, is_on_disk: bool) -> None:
    # The metadata that datasets writes may differ where the values do not.
    table = table.replace_schema_metadata(None)
    parts = [table]
    if is_on_disk and table.nbytes > LARGE:
        hasher.update(f"{table.num_rows} {table.nbytes}\0".encode())
        parts = [table.slice(0, ROWS), table.slice(max(0, table.num_rows - ROWS))]
    for part in parts:
        # Hashed while Arrow writes it: no second copy of the table in memory.
        with pa.ipc.new_stream(_Sink(hasher), table.schema) as stream:
            stream.write_table(part)


def _arguments(iterable: Any) -> list[Any]:
    """What the innermost parts of a stream are made from: files, or arguments of generators.

    `iterable`: what datasets (5.2) builds a stream of, wrapped by each method that was called.
    """
    if hasattr(iterable, "ex_iterable"):
        return _arguments(iterable.ex_iterable)
    arguments = []
    for inner in getattr(iterable, "ex_iterables", []):
        arguments += _arguments(inner)
    return arguments or [getattr(iterable, "kwargs", {})]


def _leaves(value: Any) -> Iterator[str]:
    """Numbers and texts in their order; of others their class, since a repr may hold an address."""
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            yield str(name)
            yield from _leaves(value[name])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str | int | float | bool):
        yield repr(value)
    else:
        yield type(value).__name__


def _short(hasher: Any) -> str:
    return cast(str, hasher.hexdigest())[:16]
