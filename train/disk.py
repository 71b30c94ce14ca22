"""Small files of a run folder: read as if anybody could have put anything there, and written
through no link.

Whoever copies, shares or repairs a run folder may leave a pipe, a device, a link or half a file
under any of its names.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 16 * 2**20
"""Of a file that is read at once; the largest of ours has some kilobytes."""
DEEPEST = 100
"""Levels of nested lists and mappings."""
LONGEST_SHOWN = 40
"""Characters of a value in a message."""

Shape = Any
"""What a value must be: a type, a tuple of types, or {key: shape} for a mapping that has at least
these keys.

A key that ends in `?` may be absent.
"""
NUMBER = (int, float)
MAYBE_TEXT = (str, type(None))
TYPE_NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}

# Without O_NONBLOCK, opening a pipe would wait for whoever writes into it.
READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
APPENDING = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

PLAN: Shape = {"identity": dict, "derived?": dict, "batch?": dict, "data?": dict, "name?": str}
ENDED: Shape = {"reason": str, "code?": int, "step": int}
ENVIRONMENT: Shape = {"job?": dict}


class Unreadable(ValueError):
    """A file that is there, and is not what belongs there; the message names it, and says why."""


def read_bytes(path: Path, most: int = MOST_BYTES, through_links: bool = True) -> bytes:
    """All of a regular file. Raises Unreadable, and FileNotFoundError where nothing is there.

    A pipe is not waited for, and a device is not read.
    """
    flags = READING if through_links else READING | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    # It passes as it is: for most callers a file that is not there is no damage.
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {_why(error)}") from error
    # Of the open file, not of the path: it cannot be exchanged between look and read.
    _check_regular(path, descriptor)
    with os.fdopen(descriptor, "rb") as file:
        try:
            # One byte more than allowed tells a file that is too large, without reading all of it.
            content = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {_why(error)}") from error
    if len(content) > most:
        raise Unreadable(f"{path} has more than {most / 2**20:g} MiB, which none of ours has")
    return content


def read_json(
    path: Path, shape: Shape = dict, most: int = MOST_BYTES, through_links: bool = True
) -> Any:
    """What a JSON file holds. Raises Unreadable where that has another shape, FileNotFoundError
    where no file is there.
    """
    # Strictly, and never half: what a run resumes from must be as it was written.
    content = read_bytes(path, most, through_links)
    try:
        value = parse(content)
    except Unreadable as error:
        raise Unreadable(f"{path} is damaged: {error}") from error
    wrong = shape_error(value, shape)
    if wrong:
        raise Unreadable(f"{path} is damaged: {wrong}")
    return value


def parse(content: bytes) -> Any:
    """JSON, strictly. Raises Unreadable."""
    try:
        value = json.loads(content, object_pairs_hook=_without_duplicates)
    # Python's parser recurses, and raises where its own limit comes before ours.
    except RecursionError:
        raise Unreadable(f"it is nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError:
        raise Unreadable("it is no UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is no JSON ({error.msg} at line {error.lineno})") from None
    except Unreadable:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Unreadable(str(error).partition(";")[0]) from None
    # After parsing: a value that is nested too deep would fail later, where it is printed or
    # compared.
    _check_depth(value)
    return value


def shape_error(value: Any, shape: Shape, location: str = "") -> str:
    """Why a value has another shape; empty where it fits. `location`: its key, for the message."""
    if not isinstance(shape, Mapping):
        return _type_error(value, shape, location)
    if not isinstance(value, Mapping):
        return f"{location or 'it'} is {_shown(value)}, not a mapping"
    # Further keys pass: a later version may have added them.
    for key, inner_shape in shape.items():
        name = key.removesuffix("?")
        inner_location = f"{location}.{name}" if location else name
        if name in value:
            wrong = shape_error(value[name], inner_shape, inner_location)
            if wrong:
                return wrong
        elif not key.endswith("?"):
            return f"{inner_location} is missing"
    return ""


def _type_error(value: Any, shape: Shape, location: str) -> str:
    types = shape if isinstance(shape, tuple) else (shape,)
    # To Python true is an integer, to JSON it is not.
    if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
        return ""
    names = " or ".join(TYPE_NAMES[kind] for kind in types)
    return f"{location or 'it'} is {_shown(value)}, not {names}"


def open_blocks(path: Path, size: int = 2**20, longest: int = 2**20) -> Iterator[bytes]:
    """The lines of a file, many at a time; a line that is longer than `longest` comes in pieces.

    Raises as read_bytes does.
    """
    descriptor = os.open(path, READING)
    _check_regular(path, descriptor)
    with os.fdopen(descriptor, "rb") as file:
        # The rest of the last line comes with its block, so that no row is cut in two.
        while block := file.read(size):
            yield block + file.readline(longest)


def lines_from_end(file: BinaryIO, size: int = 2**20) -> Iterator[tuple[int, list[bytes]]]:
    """(position of the first, lines), some at a time: the last ones of the file come first.

    A line that is longer than `size` comes in pieces.
    """
    end = file.seek(0, os.SEEK_END)
    unfinished = b""
    while end:
        start = max(0, end - size)
        file.seek(start)
        block = file.read(end - start) + unfinished
        # The first line of the block may begin before it: it waits for the block before.
        cut = block.find(b"\n") + 1 if start else 0
        if cut or not start or len(block) > size:
            unfinished = block[:cut]
            lines = re.split(rb"(?<=\n)", block[cut:])
            yield start + cut, list(filter(None, lines))
        else:
            unfinished = block
        end = start


def _check_regular(path: Path, descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Unreadable(f"{path} is {_kind(mode)}, not a file")


def open_own(path: Path, fresh: bool = False) -> int:
    """The descriptor of a file to append to; made where it is not there, or, `fresh`, in any case.

    Raises OSError for a link, a pipe or a device.
    """
    flags = APPENDING
    # Without its old content, and without its old inode: others may hold that open.
    if fresh:
        path.unlink(missing_ok=True)
        flags |= os.O_EXCL
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP, "it is a link, and nothing is written through one", str(path)
            ) from None
        raise
    # After opening: O_NONBLOCK has let a pipe or a device through.
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))
    return descriptor


def free_path(path: Path) -> Path:
    """The path, or the path with -2, -3, ... behind it, where nothing is yet."""
    return first_free(chain([path], numbered(path)))


def numbered(path: Path) -> Iterator[Path]:
    return (path.with_name(f"{path.name}-{number}") for number in count(2))


def first_free(paths: Iterable[Path]) -> Path:
    """The first of `paths` where nothing is, not even a broken link."""
    return next(path for path in paths if not os.path.lexists(path))


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing, whenever a kill comes. A link of that name is replaced, not
    followed.
    """
    # In the same folder: a rename is atomic within one file system only.
    unfinished = path.with_name(f".{path.name}.unfinished")
    # What a killed write has left: O_EXCL below would fail on it.
    remove(unfinished)
    try:
        with os.fdopen(open_own(unfinished, fresh=True), "wb") as file:
            file.write(content)
        unfinished.replace(path)
    except OSError:
        # On a full disk half a file would stay, and take what room there is.
        remove(unfinished)
        raise


def remove(path: Path) -> None:
    """Whatever has this name, if anything has; what a link points to stays."""
    # A link to a folder is unlinked: rmtree refuses links.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    # Python keeps the last of two: a reader that keeps the first would see another value.
    if len(mapping) != len(pairs):
        raise Unreadable("a key is there twice")
    return mapping


def _check_depth(value: Any) -> None:
    """Without recursion, which whoever reads the value may use, and which Python limits."""
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    raise Unreadable(f"it is nested deeper than {DEEPEST} levels")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return TYPE_NAMES[type(value)]
    text = "null" if value is None else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISLNK: "a link",
    }
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def _why(error: OSError) -> str:
    return "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
