"""The run folder: OUTPUT_DIR/NAME with all that is kept of a run."""

import json
from pathlib import Path
from typing import Any


class RunFolder:
    """Created by rank 0, before the first step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output_dir: str, name: str) -> tuple["RunFolder", Path | None]:
        """A new folder. An older one of the same name is moved to NAME.1, NAME.2, ...: returned as the second."""
        path, moved = Path(output_dir) / name, None
        if path.exists():
            number = 1
            while (moved := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            path.rename(moved)
        path.mkdir(parents=True)
        return cls(path), moved

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(value, indent=2) + "\n")
