"""What is wrong with a JSON file that is not read as it is meant."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.json_kinds import KINDS, find_odd_kind
from train.data.json_rows import (
    Args,
    NotAnObject,
    first_character,
    open_text,
    parse_rows,
    read_value,
)


def syntax_error(file: Path, args: Args) -> str:
    """Where a file is no JSON; '' where it is. Raises UnicodeError."""
    with open_text(file, args.get("encoding")) as opened:
        try:
            if first_character(opened) == "[":
                # A list is one value: the parser names the line in it.
                json.load(opened)
                return ""
            for _ in parse_rows(opened):
                pass
        except json.JSONDecodeError as error:
            return f"line {error.lineno:,}, column {error.colno}: {error.msg}"
        except NotAnObject as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class Cell:
    """A value of one column."""

    line: int  # of its row; 0: unknown
    value: Any

    @property
    def kind(self) -> str | None:
        return None if self.value is None else KINDS[type(self.value)]


def odd_value(file: Path, column: str, args: Args) -> str:
    """The first value of a column that is of another kind than most; '' where all are of one."""
    cells = _cells(file, column, args)
    odd = find_odd_kind([cell.kind for cell in cells])
    if odd is None:
        return ""
    cell = cells[odd.index]
    location = f"line {cell.line:,} of {file}" if cell.line else f"{file}"
    return odd.sentences(f"row {odd.index} ({location})", f"{json.dumps(cell.value):.60}")


def _cells(file: Path, column: str, args: Args) -> Sequence[Cell]:
    """Of JSON lines, or of a list, for whose rows the parser gives no lines."""
    try:
        with open_text(file, args.get("encoding")) as opened:
            return [Cell(row.line, row.values.get(column)) for row in parse_rows(opened)]
    except (ValueError, NotAnObject):
        value = read_value(file, args)
        rows = value if isinstance(value, list) else []
        return [Cell(0, row.get(column)) for row in rows if isinstance(row, dict)]
