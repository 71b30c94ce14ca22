"""What the data of a split is, in one short text: ranks compare it, and so does a second start of a
run.

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

END = 2**16
"""Bytes at both ends of a file that are looked at."""

LARGE = 2**30
"""Bytes of a table on the disk above which only its first and last rows are looked at; one in
memory is read whole.
"""

ROWS = 1000  # at both ends of a large table


def digest_of_files(files: Sequence[Path], root: Path) -> str:
    """Of files below `root`, or of `root` itself, wherever that lies."""
    found = hashlib.sha256()
    total = 0
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if path != root else path.name
        size = path.stat().st_size
        total += size
        found.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            found.update(file.read(END))
            file.seek(max(0, size - END))
            found.update(file.read(END))
    many = f"{len(files):,} files" if len(files) != 1 else "1 file"
    return f"{many} of {total:,} bytes, sha256 {_short(found)}"


def digest_of_rows(rows: Dataset | IterableDataset) -> str:
    """Of what is no file of the user's."""
    found = hashlib.sha256()
    if isinstance(rows, IterableDataset):
        for leaf in _leaves(_arguments(rows._ex_iterable)):
            found.update(f"{leaf}\0".encode())
        many = f"{rows.num_shards:,} shards" if rows.num_shards != 1 else "1 shard"
        return f"a stream of {many}, sha256 {_short(found)}"
    on_disk = bool(rows.cache_files)
    _add(found, rows.data.table, on_disk)
    if rows._indices is not None:  # rows that were chosen, in their order
        _add(found, rows._indices.table, on_disk)
    return f"{len(rows):,} rows, sha256 {_short(found)}"


class _Sink(io.RawIOBase):
    """A file that hashes what is written into it."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self._found = found

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._found.update(content)
        return len(content)


def _add(found: Any, table: pa.Table, on_disk: bool) -> None:
    # What datasets writes beside the names of the columns may differ where the values do not.
    table = table.replace_schema_metadata(None)
    parts = [table]
    if on_disk and table.nbytes > LARGE:
        found.update(f"{table.num_rows} {table.nbytes}\0".encode())
        parts = [table.slice(0, ROWS), table.slice(max(0, table.num_rows - ROWS))]
    for part in parts:
        with pa.ipc.new_stream(_Sink(found), table.schema) as stream:
            stream.write_table(part)


def _arguments(part: Any) -> list[Any]:
    """What the innermost parts of a stream are made from: their files, or the arguments of their
    generators.
    """
    inner = (
        [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    )
    if not inner:
        return [getattr(part, "kwargs", {})]
    return [arguments for each in inner for arguments in _arguments(each)]


def _leaves(value: Any) -> Iterator[str]:
    """Numbers and texts in their order; of anything else its class, since its text may hold an
    address.
    """
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


def _short(found: Any) -> str:
    return cast(str, found.hexdigest())[:16]
