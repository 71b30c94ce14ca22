"""JSON files that Arrow's reader does not take: read as Python reads them.

Columns in place of rows, objects over several lines, values of several kinds, other encodings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from train.data.json_kinds import KINDS
from train.data.shares import DataError

MAX_CHARACTERS = 2**28
"""Of a file that is parsed as one value."""

Args = Mapping[str, Any]
"""data.args"""
Columns = dict[str, list[Any]]
"""{column: its values}"""


class NotAnObject(Exception):
    """A row is something else than an object; the message says where."""


@dataclass(frozen=True)
class Row:
    line: int  # on which it begins, counted from 1
    values: dict[str, Any]


def open_text(file: Path, encoding: str | None) -> Any:
    """Open a file for reading, compressed or not."""
    # -sig: Python's parser refuses a text that begins with a byte order mark.
    return fsspec.open(
        str(file), "rt", encoding=encoding or "utf-8-sig", compression="infer", newline=""
    )


def read_columns(file: Path, args: Args) -> Columns | None:
    """The content of a file that holds one object in place of rows; None: it does not.

    Raises DataError, with what to type, where the rows are inside of something else.
    """
    value = read_value(file, args)
    field = args.get("field")
    if field is not None and isinstance(value, dict):
        if field not in value:
            raise DataError(
                f"{file} has no field {field!r}; it has: {', '.join(value)}. Correct "
                "data.args.field"
            )
        value = value[field]
        if _is_rows(value):
            return _by_column(value)
    if not isinstance(value, dict) or not value:
        return None
    members = list(value.values())
    if all(isinstance(member, dict) for member in members):
        return _columns_of_pandas(value)
    if all(isinstance(member, list) for member in members):
        lengths = {len(member) for member in members}
        is_one_list_of_rows = len(members) == 1 and _is_rows(members[0])
        if len(lengths) == 1 and not is_one_list_of_rows:
            return value
    _refuse_nested(file, value)
    return None


def read_rows(file: Path, args: Args) -> Columns:
    """The rows of a file, by column. Raises ValueError and NotAnObject for what is no JSON."""
    with open_text(file, args.get("encoding")) as opened:
        if first_character(opened) != "[":
            return _by_column([row.values for row in parse_rows(opened)])
        value = json.load(opened)
    if not _is_rows(value):
        raise NotAnObject(
            "its list does not hold objects alone. Each row must be one, {column: value}"
        )
    return _by_column(value)


def as_arrow(columns: Mapping[str, list[Any]]) -> pa.Table:
    """A table; a column whose values Arrow does not take together holds the text of each."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        # OverflowError: of a whole number that 64 bits do not hold.
        except (pa.ArrowException, OverflowError):
            arrays[name] = pa.array(_of_one_type(values))
    return pa.table(arrays)


def parse_rows(opened: Any) -> Iterator[Row]:
    """The objects of JSON lines, or objects over several lines each.

    Raises JSONDecodeError, its line counted from the beginning of the file, and NotAnObject.
    """
    decoder = json.JSONDecoder()
    pending = ""  # lines of an object whose end is not read yet
    begun = 0
    for number, line in enumerate(opened, 1):
        if not pending:
            begun = number
        # An object may stand on several lines, as pretty-printers write it.
        pending += line
        text = pending.strip()
        if not text:
            pending = ""
            continue
        try:
            # raw_decode, and not loads: it gives where the object ends, and what stands behind it
            # is named.
            value, end = decoder.raw_decode(text)
        except json.JSONDecodeError as error:
            if text.startswith("{") and error.pos >= len(text):
                continue  # its end is on a later line
            raise _from_line(error, pending, begun) from None
        if not isinstance(value, dict):
            raise NotAnObject(
                f"line {begun:,} holds {KINDS[type(value)]}. Each line must be an object, "
                "{column: value}"
            )
        rest = text[end:]
        if rest.strip():
            raise NotAnObject(f"line {begun:,} holds more than its object: {rest[:40]!r}")
        yield Row(begun, value)
        pending = ""
    if pending.strip():
        raise NotAnObject(
            f"the object that begins in line {begun:,} has no end. Is the file complete?"
        )


def first_character(opened: Any) -> str:
    """The first that is no blank; the file is at its beginning afterwards."""
    character = opened.read(1)
    while character.isspace():
        character = opened.read(1)
    opened.seek(0)
    return str(character)


def read_value(file: Path, args: Args) -> Any:
    """The one value of a file; None for JSON lines, for a long file, and where it is none."""
    # By the name first, so that a large file of lines is not opened a second time.
    is_in_lines = bool({".jsonl", ".ndjson"} & set(file.suffixes))
    if is_in_lines or file.stat().st_size > MAX_CHARACTERS:
        return None
    try:
        with open_text(file, args.get("encoding")) as opened:
            first = opened.readline()
            second = opened.readline()
            if second.strip() and _is_json(first):
                return None  # JSON lines, whatever the name says
            opened.seek(0)
            return json.load(opened)
    except (ValueError, OSError):
        return None


def _columns_of_pandas(value: Mapping[str, Mapping[str, Any]]) -> Columns | None:
    """Of {column: {row: value}}, as pandas writes tables; None: rows differ between columns."""
    rows = {tuple(column) for column in value.values()}
    if len(rows) > 1:
        return None
    return {name: list(column.values()) for name, column in value.items()}


def _refuse_nested(file: Path, value: Mapping[str, Any]) -> None:
    """Raises DataError where the rows of an object are inside of it, or its columns differ."""
    fields = [name for name, member in value.items() if _is_rows(member)]
    if fields:
        argument = f"'data.args={{field: {json.dumps(fields[0])}}}'"
        raise DataError(
            f"{file} holds one object, whose rows are inside of it, as {fields[0]!r}. Set: "
            f"{argument}"
        )
    if all(isinstance(member, list) for member in value.values()):
        lengths = ", ".join(f"{name}: {len(member)}" for name, member in value.items())
        raise DataError(
            f"{file} holds columns that are not equally long ({lengths}). Write one object for "
            "each row"
        )


def _of_one_type(values: Sequence[Any]) -> list[float | str | None]:
    """Numbers as floats where all are numbers; else each value as its text."""
    # By exact type: for isinstance, True is a number, and a column of both is no column of numbers.
    is_numeric = all(value is None or type(value) in (int, float) for value in values)
    converted: list[float | str | None] = []
    for value in values:
        if value is None or isinstance(value, str):
            converted.append(value)
        elif is_numeric:
            converted.append(float(value))
        else:
            converted.append(json.dumps(value))
    return converted


def _by_column(rows: Sequence[Mapping[str, Any]]) -> Columns:
    names: dict[str, None] = {}  # in the order in which they come
    for row in rows:
        names |= dict.fromkeys(row)
    columns: Columns = {}
    for name in names:
        # A key that a row lacks is a missing value, as for Arrow's reader.
        columns[name] = [row.get(name) for row in rows]
    return columns


def _from_line(error: json.JSONDecodeError, text: str, begun: int) -> json.JSONDecodeError:
    """The same error, its line counted from the beginning of the file."""
    if begun == 1:
        return json.JSONDecodeError(error.msg, text, error.pos)
    moved = json.JSONDecodeError(error.msg, error.doc, error.pos)
    moved.lineno = error.lineno + begun - 1
    return moved


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
