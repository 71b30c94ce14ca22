"""The file that wandb-core writes beside a run: whether all of it was written.

Where the disk is full wandb 0.31 writes nothing more, to the end of the run, and `log` and `finish`
report no error.
"""

import struct
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# The format of LevelDB's log: blocks of a fixed size hold the fragments of records. A record that
# does not fit into what is left of a block continues in the next one.
BLOCK_BYTES = 32 * 1024
HEADER = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of a fragment, by LevelDB's names."""
KINDS = (FULL, FIRST, MIDDLE, LAST)


def becomes_complete(path: Path, seconds: float) -> bool:
    """As is_complete, within so many seconds: `finish` may return before wandb-core has written
    the last records.
    """
    deadline = time.monotonic() + seconds
    while not is_complete(path):
        if time.monotonic() > deadline:
            return False
        # Short looks: wandb-core writes the last records on its own time.
        time.sleep(0.05)
    return True


def is_complete(path: Path) -> bool:
    """Whether one of the last records ends a run; also where there is no such file: it cannot be
    known then.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # The last two blocks: the record of the end may lie across both.
            start = max(0, (size - 1) // BLOCK_BYTES - 1) * BLOCK_BYTES
            file.seek(start)
            blocks = file.read()
    except OSError:
        return True
    # Among the last, not the very last: other records may follow that of the end.
    return any(map(_ends_a_run, _records(blocks, is_first=start == 0)))


def _records(blocks: bytes, is_first: bool) -> Iterator[bytes]:
    """Of full blocks and one that may be shorter. The first block of a file begins with 7 bytes
    that are no record.
    """
    record = b""
    position = HEADER.size if is_first else 0
    while position + HEADER.size <= len(blocks):
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < HEADER.size:  # too little for another fragment: filled up
            position += room
            continue
        _, length, kind = HEADER.unpack_from(blocks, position)
        position += HEADER.size
        fragment = blocks[position : position + length]
        if kind not in KINDS or len(fragment) < length:
            return  # zeros or half a fragment: what followed was not written
        position += length
        if kind in (FULL, FIRST):
            record = fragment
        else:
            record += fragment
        if kind in (FULL, LAST):
            yield record


def _ends_a_run(record: bytes) -> bool:
    from google.protobuf.message import DecodeError

    protocol: Any = import_module("wandb.proto.wandb_internal_pb2")
    message = protocol.Record()
    try:
        message.ParseFromString(record)
    except DecodeError:
        return False
    return bool(message.HasField("exit"))
