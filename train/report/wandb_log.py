"""The file that wandb-core writes beside a run: whether all of it was written.

Where the disk is full wandb 0.31 writes nothing more, to the end of the run, and `log` and `finish`
say nothing.
"""

import struct
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32 * 1024
HEADER = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
"""Kinds of a part of a record, in the format of LevelDB's log; a record may go on in the next
block.
"""


def becomes_whole(path: Path, seconds: float) -> bool:
    """As is_whole, within so many seconds: `finish` may return before wandb-core has written the
    last records.
    """
    end = time.monotonic() + seconds
    while not is_whole(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_whole(path: Path) -> bool:
    """Whether one of the last records ends a run; also where there is no such file: nothing is
    known then.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, (size - 1) // BLOCK_BYTES - 1) * BLOCK_BYTES
            file.seek(start)
            blocks = file.read()
    except OSError:
        return True
    return any(map(_ends_a_run, _records(blocks, is_first=start == 0)))


def _records(blocks: bytes, is_first: bool) -> Iterator[bytes]:
    """Of whole blocks and one that may be shorter. The first block of a file begins with 7 bytes of
    its own.
    """
    parts = b""
    place = HEADER.size if is_first else 0
    while place + HEADER.size <= len(blocks):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < HEADER.size:  # too little for another part: filled up
            place += left
            continue
        _, length, kind = HEADER.unpack_from(blocks, place)
        place += HEADER.size
        part = blocks[place : place + length]
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or len(part) < length:
            return  # zeros or half a part: what followed was not written
        place += length
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            yield parts


def _ends_a_run(record: bytes) -> bool:
    from google.protobuf.message import DecodeError

    records: Any = import_module("wandb.proto.wandb_internal_pb2")
    read = records.Record()
    try:
        read.ParseFromString(record)
    except DecodeError:
        return False
    return bool(read.HasField("exit"))
