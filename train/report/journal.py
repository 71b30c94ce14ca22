"""metrics.jsonl: the record of truth. One JSON object for each row, on disk before the next step."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import metric_names


class Journal:
    def __init__(self, path: Path, last_step: int, evaluation_owed: bool = False) -> None:
        """Goes on after `last_step`: rows of later steps, which will be trained once more, are taken out.

        So is the evaluation of `last_step` itself where it is owed, since it will be done once more.
        """
        _cut(path, last_step, evaluation_owed)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""  # rows for which there was no room

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row. JSON knows no NaN: a value that is not finite is written as null.

        Raises OSError where it cannot be written now; it is kept, and tried again before the next one.
        """
        known = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._unwritten += (json.dumps(known) + "\n").encode()
        self._write()

    def sync(self) -> None:
        """Wait until all rows are on disk. Raises OSError where that cannot be."""
        self._write()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def finish(self, exit_code: int) -> None:
        self._file.close()


def _cut(path: Path, last_step: int, evaluation_owed: bool) -> None:
    """Keep the rows up to a step; a kill may also have left half a row."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        again = evaluation_owed and _step(line) == last_step and _is_evaluation(line)
        if line.endswith("\n") and _step(line) <= last_step and not again:
            kept.append(line)
    if kept != lines:
        rest = path.with_suffix(".unfinished")
        rest.write_text("".join(kept), encoding="utf-8")
        rest.replace(path)


def _is_evaluation(line: str) -> bool:
    row: dict[str, Any] = json.loads(line)
    return any(key.startswith(metric_names.EVAL) for key in row)


def _step(line: str) -> float:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return math.inf
    return float(row[metric_names.GLOBAL_STEP])
