"""metrics.jsonl: the record of truth. One JSON object for each row, on disk before the
next step.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from train import metric_names
from train.disk import NUMBER, Unreadable, lines_from_end, misfit, open_own, parse, write_whole
from train.errors import counted, print_error


class Journal:
    def __init__(self, path: Path, last_step: int, evaluation_owed: bool = False) -> None:
        """Goes on after `last_step`: rows of later steps, which will be trained once more, are
        taken out.

        So is the evaluation of `last_step` itself where it is owed, since it will be done once
        more.
        """
        self.taken_out = _cut(path, last_step, evaluation_owed)
        """The last step of the rows of later steps; 0: there were none."""
        self._path = path
        self.file = os.fdopen(open_own(path), "ab", buffering=0)
        self._unwritten = b""  # rows for which there was no room

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row. JSON knows no NaN: a value that is not finite is written as null.

        Raises OSError where it cannot be written now; it is kept, and tried again before the next
        one.
        """
        known = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._unwritten += (json.dumps(known) + "\n").encode()
        self._write()

    def sync(self) -> None:
        """Wait until all rows are on disk. Raises OSError where that cannot be."""
        self._write()
        os.fsync(self.file.fileno())

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self.file.write(self._unwritten) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def finish(self, exit_code: int) -> None:
        self.file.close()


def _cut(path: Path, last_step: int, evaluation_owed: bool) -> int:
    """Keep the rows up to a step; the last step of what was cut off, else 0.

    Steps only grow, so the file is read from its end, back to a row of an earlier step: no more
    than a megabyte before what is cut off. A kill may have left half a row. Other lines that are
    none are put beside, as far as it is read.
    """
    with os.fdopen(open_own(path), "rb") as file:
        start, lines = _last_lines(file, last_step)
        steps = [_step(line) for line in lines]
        kept = []
        for line, step in zip(lines, steps, strict=True):
            again = evaluation_owed and step == last_step and _is_evaluation(line)
            if step is not None and step <= last_step and not again:
                kept.append(line)
        odd = [
            line
            for line, step in zip(lines, steps, strict=True)
            if step is None and line.endswith(b"\n")
        ]
        if odd:
            aside = path.with_name(f"{path.name}.damaged")
            write_whole(aside, b"".join(odd))
            print_error(
                f"{path}: {counted(len(odd), 'line')} put aside that held no row of metrics; now "
                f"in {aside}"
            )
        if kept == lines[: len(kept)]:  # as a rule; a kill leaves the old end or the new one
            os.ftruncate(file.fileno(), start + sum(map(len, kept)))
        else:
            file.seek(0)
            write_whole(path, file.read(start) + b"".join(kept))
    later = [step for step in steps if step is not None and step > last_step]
    return int(max(later, default=0))


def _last_lines(file: BinaryIO, last_step: int) -> tuple[int, list[bytes]]:
    """(where they begin, the lines), back to a row of an earlier step."""
    first, several = 0, []
    for start, some in lines_from_end(file):
        first = start
        several.append(some)
        if any(step is not None and step < last_step for step in map(_step, some)):
            break
    return first, [line for some in reversed(several) for line in some]


def _is_evaluation(line: bytes) -> bool:
    return any(key.startswith(metric_names.EVAL) for key in parse(line))


def _step(line: bytes) -> float | None:
    """None where it is no row."""
    try:
        row = parse(line)
    except Unreadable:
        return None
    if not line.endswith(b"\n") or misfit(row, {metric_names.GLOBAL_STEP: NUMBER}):
        return None
    step: float = row[metric_names.GLOBAL_STEP]
    return step
