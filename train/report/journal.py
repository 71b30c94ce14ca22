"""metrics.jsonl: the record of truth. One JSON object for each row, on disk before the
next step.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from train import metric_names
from train.disk import (
    NUMBER,
    Unreadable,
    lines_from_end,
    open_own,
    parse,
    shape_error,
    write_atomically,
)
from train.errors import counted, print_error


class Journal:
    def __init__(self, path: Path, last_step: int, evaluation_owed: bool = False) -> None:
        """Continues after `last_step`: rows of later steps, which will be trained once more, are
        removed.

        So is the evaluation of `last_step` itself where it is owed, since it will be done once
        more.
        """
        # Before the file is opened to append: it may be replaced as a whole.
        self.last_removed = _cut(path, last_step, evaluation_owed)
        """The last step of the rows that were removed; 0: there were none."""
        self._path = path
        # Unbuffered: what a write has failed for is known, and only that is tried again.
        self.file = os.fdopen(open_own(path), "ab", buffering=0)
        self._unwritten = b""  # rows for which there was no room

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row. JSON has no NaN: a value that is not finite is written as null.

        Raises OSError where it cannot be written now; it is kept, and tried again before the next
        one.
        """
        values: dict[str, float | None] = dict(row)
        for key, value in row.items():
            if not math.isfinite(value):
                values[key] = None
        # Kept with the rows before it: a row that cannot be written must not be lost between two
        # others.
        self._unwritten += (json.dumps(values) + "\n").encode()
        self._write()

    def sync(self) -> None:
        """Wait until all rows are on disk. Raises OSError where that fails."""
        self._write()
        os.fsync(self.file.fileno())

    def _write(self) -> None:
        try:
            # In a loop: an unbuffered write may take a part of it, as where the disk is full.
            while self._unwritten:
                written = self.file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            # With the path: a write by descriptor names no file.
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def finish(self, exit_code: int) -> None:
        self.file.close()


@dataclass(frozen=True)
class _Line:
    """A line of the file, with its newline unless a kill came before that."""

    text: bytes
    step: float | None
    """None: it is no row."""


def _cut(path: Path, last_step: int, evaluation_owed: bool) -> int:
    """Keep the rows up to a step; gives the last step of what was cut off, else 0.

    Steps only grow, so the file is read from its end, back to a row of an earlier step: no more
    than a megabyte before what is cut off. A kill may have left half a row. Other lines that are
    no rows are put into another file, as far as it is read.
    """
    with os.fdopen(open_own(path), "rb") as file:
        tail = _read_tail(file, last_step)
        kept = []
        # Lines that are no rows are left out here, and put aside below.
        for line in tail.lines:
            if line.step is None or line.step > last_step:
                continue
            owed = evaluation_owed and line.step == last_step and _is_evaluation(line.text)
            if not owed:
                kept.append(line)
        # Before the file is cut: a kill in between leaves such lines in both places, and loses
        # none.
        _put_aside(path, tail.lines)
        text = b"".join(line.text for line in kept)
        # As a rule the end alone is cut off, in one call: a kill leaves the old end or the new one.
        if kept == tail.lines[: len(kept)]:
            os.ftruncate(file.fileno(), tail.start + len(text))
        else:
            file.seek(0)
            write_atomically(path, file.read(tail.start) + text)
    # For W&B, which keeps the rows that are cut off here.
    later = [line.step for line in tail.lines if line.step is not None and line.step > last_step]
    return int(max(later, default=0))


def _put_aside(path: Path, lines: Sequence[_Line]) -> None:
    """Lines that are no rows; half a line is what a kill has left, and is not worth keeping."""
    odd = [line.text for line in lines if line.step is None and line.text.endswith(b"\n")]
    if not odd:
        return
    aside = path.with_name(f"{path.name}.damaged")
    write_atomically(aside, b"".join(odd))
    print_error(
        f"{path}: {counted(len(odd), 'line')} put aside that held no row of metrics; now in {aside}"
    )


@dataclass(frozen=True)
class _Tail:
    start: int
    """Where the lines begin in the file."""
    lines: Sequence[_Line]


def _read_tail(file: BinaryIO, last_step: int) -> _Tail:
    """The lines from a row of an earlier step on."""
    start = 0
    blocks = []
    for position, texts in lines_from_end(file):
        block = [_Line(text, _step(text)) for text in texts]
        start = position
        blocks.append(block)
        # Steps only grow, so nothing before this block can be of `last_step` or later.
        if any(line.step is not None and line.step < last_step for line in block):
            break
    blocks.reverse()
    return _Tail(start, list(chain.from_iterable(blocks)))


def _is_evaluation(line: bytes) -> bool:
    return any(key.startswith(metric_names.EVAL) for key in parse(line))


def _step(line: bytes) -> float | None:
    """None where it is no row."""
    try:
        row = parse(line)
    except Unreadable:
        return None
    # Without its newline it was not written to its end: the next row would stand on the same line.
    if not line.endswith(b"\n") or shape_error(row, {metric_names.GLOBAL_STEP: NUMBER}):
        return None
    step: float = row[metric_names.GLOBAL_STEP]
    return step
