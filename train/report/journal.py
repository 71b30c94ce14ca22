"""metrics.jsonl: the record of truth. One JSON object for each row, on disk before the next step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path


class Journal:
    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, float]) -> None:
        """Append a row. JSON knows no NaN: a value that is not finite is written as null."""
        known = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._file.write(json.dumps(known) + "\n")
        self._file.flush()

    def finish(self, exit_code: int) -> None:
        self._file.close()
