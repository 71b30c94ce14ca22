"""Small files of a run folder: read as if anybody could have put anything there, and written
through no link.

Whoever copies, shares or mends a run folder may leave a pipe, a device, a link or half a file under
any of its names.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 16 * 2**20
"""Of a file that is read as a whole; the largest of ours has some kilobytes."""
DEEPEST = 100
"""Levels of lists and mappings in each other."""

Shape = Any
"""What a value must be: a type, a tuple of types, or {key: shape} for a mapping that has at least
these keys.

A key that ends in `?` may be absent.
"""
NUMBER = (int, float)
MAYBE_TEXT = (str, type(None))

PLAN: Shape = {"identity": dict, "derived?": dict, "batch?": dict, "data?": dict, "name?": str}
ENDED: Shape = {"reason": str, "code?": int, "step": int}
ENVIRONMENT: Shape = {"job?": dict}


class Unreadable(ValueError):
    """A file that is there, and is not what belongs there; the message says why, after the file's
    name.
    """


def read_bytes(path: Path, most: int = MOST_BYTES, through_links: bool = True) -> bytes:
    """All of a regular file. Raises Unreadable, and FileNotFoundError where nothing is there.

    A pipe is not waited for, and a device is not read.
    """
    # Without O_NONBLOCK to open a pipe waits for whoever writes into it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if through_links else os.O_NOFOLLOW)
    try:
        number = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {_why(error)}") from error
    _check_regular(path, number)
    with os.fdopen(number, "rb") as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {_why(error)}") from error
    if len(content) > most:
        raise Unreadable(f"{path} has more than {most / 2**20:g} MiB, which none of ours has")
    return content


def read_json(
    path: Path, shape: Shape = dict, most: int = MOST_BYTES, through_links: bool = True
) -> Any:
    """What a JSON file holds. Raises Unreadable where that has not the shape, FileNotFoundError
    where none is there.
    """
    try:
        value = parse(read_bytes(path, most, through_links))
    except FileNotFoundError:
        raise
    except Unreadable as error:
        raise Unreadable(
            str(error) if str(path) in str(error) else f"{path} is damaged: {error}"
        ) from error
    if wrong := misfit(value, shape):
        raise Unreadable(f"{path} is damaged: {wrong}")
    return value


def parse(content: bytes) -> Any:
    """JSON, strictly. Raises Unreadable."""
    try:
        value = json.loads(content, object_pairs_hook=_once)
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
    _check_depth(value)
    return value


def misfit(value: Any, shape: Shape, place: str = "") -> str:
    """Why a value has not the shape; empty where it has."""
    if not isinstance(shape, Mapping):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        names = " or ".join("null" if kind is type(None) else NAMES[kind] for kind in kinds)
        return "" if fits else f"{place or 'it'} is {_shown(value)}, not {names}"
    if not isinstance(value, Mapping):
        return f"{place or 'it'} is {_shown(value)}, not a mapping"
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name in value:
            wrong = misfit(value[name], inner, f"{place}.{name}" if place else name)
        else:
            wrong = "" if key.endswith("?") else f"{place + '.' if place else ''}{name} is missing"
        if wrong:
            return wrong
    return ""


NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def open_blocks(path: Path, size: int = 2**20, longest: int = 2**20) -> Iterator[bytes]:
    """The lines of a file, many at a time; of one that is longer, pieces. Raises as read_bytes
    does.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    _check_regular(path, number)
    with os.fdopen(number, "rb") as file:
        while block := file.read(size):
            yield block + file.readline(longest)


def lines_from_end(file: BinaryIO, size: int = 2**20) -> Iterator[tuple[int, list[bytes]]]:
    """(place of the first, lines), some at a time: the last ones of the file come first. Of a line
    that is longer than `size`, pieces.
    """
    start, later = file.seek(0, os.SEEK_END), b""
    while start:
        begin = max(0, start - size)
        file.seek(begin)
        block = file.read(start - begin) + later
        # What ends within the block, but begins before it, waits for the block before.
        cut = block.find(b"\n") + 1 if begin else 0
        if cut or not begin or len(block) > size:
            later, whole = block[:cut], block[cut:]
            yield begin + cut, [line for line in re.split(rb"(?<=\n)", whole) if line]
        else:
            later = block
        start = begin


def _check_regular(path: Path, number: int) -> None:
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise Unreadable(f"{path} is {_kind(mode)}, not a file")


def open_own(path: Path, fresh: bool = False) -> int:
    """A file to append to, made where it is not there, or `fresh`. Raises OSError for a link, a
    pipe or a device.
    """
    if fresh:
        path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    flags |= os.O_EXCL if fresh else 0
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP, "it is a link, and nothing is written through one", str(path)
            ) from None
        raise
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))
    return number


def first_free(paths: Iterable[Path]) -> Path:
    """The first of `paths` where nothing is, not even a link that leads nowhere."""
    return next(path for path in paths if not os.path.lexists(path))


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, whenever a kill comes. A link of that name is replaced, not
    followed.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    remove(unfinished)
    try:
        with os.fdopen(open_own(unfinished, fresh=True), "wb") as file:
            file.write(content)
        unfinished.replace(path)
    except OSError:
        remove(unfinished)
        raise


def remove(path: Path) -> None:
    """Whatever has this name, if anything has; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("a key is there twice")
    return found


def _check_depth(value: Any) -> None:
    """Level by level: what follows may take each by recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise Unreadable(f"it is nested deeper than {DEEPEST} levels")
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
        level = below


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return NAMES[type(value)]
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


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
