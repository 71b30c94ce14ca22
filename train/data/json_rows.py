"""A second look at a JSON file: where it is no JSON, which value is of another kind, what else it
holds than rows.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from train.data.shares import DataError

KINDS = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
"""What a value of JSON is, in words."""

LONGEST = 2**28
"""Characters of a file that is looked at as one value."""


def text_of(file: Path, encoding: str | None) -> Any:
    """Opened, whether it is compressed or not."""
    return fsspec.open(
        str(file), "rt", encoding=encoding or "utf-8-sig", compression="infer", newline=""
    )


def columns_of(file: Path, args: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """{column: its values}, where a file holds one object in place of rows; None: it does not.

    Raises DataError, with what to type, where the rows are inside of something else.
    """
    whole = _whole(file, args)
    field = args.get("field")
    if field is not None and isinstance(whole, dict):
        if field not in whole:
            raise DataError(
                f"{file} has no field {field!r}; it has: {', '.join(whole)}. Correct "
                "data.args.field"
            )
        whole = whole[field]
        if _is_rows(whole):
            return _by_column(whole)
    if not isinstance(whole, dict) or not whole:
        return None
    values = list(whole.values())
    # as pandas writes it: {column: {row: value}}
    if all(isinstance(value, dict) for value in values):
        alike = len({tuple(value) for value in values}) == 1
        return {name: list(column.values()) for name, column in whole.items()} if alike else None
    lengths = {len(value) for value in values if isinstance(value, list)}
    are_lists = all(isinstance(value, list) for value in values)
    if are_lists and len(lengths) == 1 and (len(values) > 1 or not _is_rows(values[0])):
        return whole
    fields = [name for name, value in whole.items() if _is_rows(value)]
    if fields:
        typed = f"'data.args={{field: {json.dumps(fields[0])}}}'"
        raise DataError(
            f"{file} holds one object, whose rows are inside of it, as {fields[0]!r}. Type: {typed}"
        )
    if are_lists and len(lengths) > 1:
        shown = ", ".join(f"{name}: {len(value)}" for name, value in whole.items())
        raise DataError(
            f"{file} holds columns that are not equally long ({shown}). Write one object for each "
            "row"
        )
    return None


def rows_of(file: Path, args: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{column: its values} of rows, as Python reads them. Raises ValueError and NoObject for what
    is no JSON.
    """
    with text_of(file, args.get("encoding")) as opened:
        if _first_letter(opened) != "[":
            return _by_column([row for _, row in _values(opened)])
        whole = json.load(opened)
    if not _is_rows(whole):
        raise NoObject(
            "its list does not hold objects alone. Each row must be one, {column: value}"
        )
    return _by_column(whole)


def as_arrow(columns: Mapping[str, list[Any]]) -> pa.Table:
    """A column whose values Arrow does not take together as the text of each."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError):
            numbers = all(value is None or type(value) in (int, float) for value in values)
            arrays[name] = pa.array([_as_one(value, numbers) for value in values])
    return pa.table(arrays)


def _as_one(value: Any, is_number: bool) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    return float(value) if is_number else json.dumps(value)


def _by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _first_letter(opened: Any) -> str:
    first = opened.read(1)
    while first.isspace():
        first = opened.read(1)
    opened.seek(0)
    return str(first)


def what_is_wrong(file: Path, args: Mapping[str, Any]) -> str:
    """Where it is no JSON; nothing: ''. Raises UnicodeError."""
    with text_of(file, args.get("encoding")) as opened:
        try:
            if _first_letter(opened) == "[":
                json.load(opened)
                return ""
            for _ in _values(opened):
                pass
        except json.JSONDecodeError as error:
            return f"line {error.lineno:,}, column {error.colno}: {error.msg}"
        except NoObject as error:
            return str(error)
    return ""


def odd_value(file: Path, column: str, args: Mapping[str, Any]) -> str:
    """The first value of a column that is not of the kind that most of them are of, and where it
    stands.
    """
    found: list[tuple[int, Any]] = []
    try:
        with text_of(file, args.get("encoding")) as opened:
            found = [(line, row.get(column)) for line, row in _values(opened)]
    except (ValueError, NoObject):
        whole = _whole(file, args)
        rows = whole if isinstance(whole, list) else []
        found = [(0, row.get(column)) for row in rows if isinstance(row, dict)]
    counts = Counter(KINDS[type(value)] for _, value in found if value is not None)
    if len(counts) < 2:
        return ""
    usual, count = counts.most_common(1)[0]
    row = next(
        row
        for row, (_, value) in enumerate(found)
        if value is not None and KINDS[type(value)] != usual
    )
    line, value = found[row]
    place = f"line {line:,} of {file}" if line else f"{file}"
    more = sum(counts.values()) - count - 1
    others = f", and {more} more are not" if more else ""
    return (
        f"row {row} ({place}) has {KINDS[type(value)]}, {json.dumps(value):.60}, where {count} "
        f"others have {usual}{others}. Write all of them as {usual}"
    )


class NoObject(Exception):
    """A line holds something else than an object."""


def _values(opened: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of JSON lines, or of objects over several lines each."""
    decoder = json.JSONDecoder()
    waiting = ""
    begun = 0
    for number, line in enumerate(opened, 1):
        begun = begun if waiting else number
        waiting += line
        if not waiting.strip():
            waiting = ""
            continue
        try:
            value, end = decoder.raw_decode(waiting.strip())
        except json.JSONDecodeError as error:
            if waiting.strip().startswith("{") and error.pos >= len(waiting.strip()):
                continue  # its end is on a later line
            raise (
                json.JSONDecodeError(error.msg, waiting, error.pos)
                if begun == 1
                else _at(error, begun)
            ) from None
        if not isinstance(value, dict):
            raise NoObject(
                f"line {begun:,} holds {KINDS[type(value)]}. Each line must be an object, "
                "{column: value}"
            )
        if waiting.strip()[end:].strip():
            raise NoObject(
                f"line {begun:,} goes on after its object: {waiting.strip()[end:][:40]!r}"
            )
        yield begun, value
        waiting = ""
    if waiting.strip():
        raise NoObject(f"the object that begins in line {begun:,} has no end. Is the file whole?")


def _at(error: json.JSONDecodeError, line: int) -> json.JSONDecodeError:
    """The same error, told from the beginning of the file."""
    moved = json.JSONDecodeError(error.msg, error.doc, error.pos)
    moved.lineno = error.lineno + line - 1
    return moved


def _whole(file: Path, args: Mapping[str, Any]) -> Any:
    """The one value of a file; None for JSON lines, for a long file, and where it is none."""
    in_lines = {".jsonl", ".ndjson"} & set(file.suffixes)
    if in_lines or file.stat().st_size > LONGEST:
        return None
    try:
        with text_of(file, args.get("encoding")) as opened:
            first = opened.readline()
            second = opened.readline()
            if second.strip() and _is_json(first):
                return None
            opened.seek(0)
            return json.load(opened)
    except (ValueError, OSError):
        return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
