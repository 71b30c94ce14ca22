"""The encoding of a text file, as far as its bytes show it."""

import codecs
import re
from pathlib import Path

import fsspec

HEAD_BYTES = 2**16

BYTE_ORDER_MARKS = {
    # UTF-32 first: its little-endian mark begins like that of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_head(file: Path) -> bytes:
    """The first HEAD_BYTES of a file, decompressed."""
    with fsspec.open(str(file), "rb", compression="infer") as opened:
        head: bytes = opened.read(HEAD_BYTES)
    return head


def encoding_of(file: Path) -> str | None:
    """The encoding of a text that is not UTF-8; None: nothing speaks against UTF-8."""
    head = read_head(file)
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    # UTF-16 without a mark: of a Latin letter one of two bytes is zero, the first where the order
    # is big-endian.
    if b"\0" in head:
        return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    # All of it: the only letter beyond ASCII may stand at the end.
    with fsspec.open(str(file), "rb", compression="infer") as opened:
        content = opened.read()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        # The bytes from 0x80 to 0x9f are letters in Windows' own encoding, and nothing that is
        # written in Latin-1.
        return "cp1252" if re.search(rb"[\x80-\x9f]", content) else "latin-1"
    return None
