"""Which arguments of pandas read a CSV file as it is meant.

They are tried on the file: what an error advises works when it is typed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from datasets.packaged_modules.csv.csv import CsvConfig

from train.data.columns import Columns, flat_columns
from train.data.csv_tables import column_types, frames, header_of, options_of
from train.data.text_encoding import encoding_of, read_head

Args = Mapping[str, Any]
"""Arguments of pandas.read_csv, as data.args has them."""

BLANKS = r"\s+"
SEPARATORS = (";", "\t", "|", ",", BLANKS, ":")
QUOTING_NONE = 3  # csv.QUOTE_NONE
MAX_CHANGES = 3  # of the arguments, at once
FIRST_ROWS = {"nrows": 20, "chunksize": None}

NUMBER = r"[-+]?[\d.,]+([eE][-+]?\d+)?(\.\d+)?"
"""Where a name should be; pandas writes a second 1 as 1.1."""

NO_COLUMNS: Columns = {}


def find_arguments(file: Path, args: Args, columns: Columns) -> dict[str, Any] | None:
    """`args` with the fewest changes under which the file holds `columns`.

    Columns that are read side by side must hold numbers. NO_COLUMNS: any table of several columns
    will do. None: nothing that was tried does that.
    """
    names = flat_columns(columns)
    numbers = _number_columns(columns)
    is_read_already = reads(file, args, columns)
    if is_read_already and not numbers:
        return None
    # The columns are there, but not in numbers: better than nothing where no change does both.
    second_best: dict[str, Any] | None = None
    for changes in _candidates(file, args, may_skip_lines=bool(names)):
        changed = {**args, **changes}
        types = _types_under(file, changed, names)
        if types is None:
            continue
        if all(types.get(name) not in ("str", None) for name in numbers):
            return changed
        second_best = second_best or changed
    if is_read_already:
        return None
    return second_best


def separator_in_header(file: Path, args: Args) -> str | None:
    """What separates a header that is read as one name; None: it has several, or none is seen."""
    try:
        header = header_of(str(file), options_of(CsvConfig(**args)))
    except Exception:
        return None
    if len(header) != 1:
        return None
    # Not blanks or colons, which a name may contain.
    used = [separator for separator in SEPARATORS[:4] if separator in header[0]]
    if used:
        return max(used, key=header[0].count)
    numbers = [part for part in header[0].split() if re.fullmatch(NUMBER, part)]
    # Several numbers: a row of values, without a header above it.
    return BLANKS if len(numbers) > 1 else None


def columns_without_header(file: Path, args: Args) -> int:
    """How many columns a file has whose first line holds numbers, not names; 0: it has names."""
    has_stated_names = args.get("names") is not None or args.get("header", "infer") is None
    if has_stated_names:
        return 0
    try:
        names = _column_names(file, args)
    except Exception:
        return 0
    numbers = [name for name in names if re.fullmatch(NUMBER, name)]
    # More than half of them, since a row of values may hold words too, such as the class.
    return len(names) if len(numbers) * 2 > len(names) else 0


def reads(file: Path, args: Args, columns: Columns) -> bool:
    """Whether the file can be read to its end, and holds the columns."""
    return _types_under(file, args, flat_columns(columns)) is not None


def show_args(args: Args) -> str:
    """data.args, quoted for a shell."""
    pairs = [f"{name}: {json.dumps(value)}" for name, value in args.items()]
    return f"'data.args={{{', '.join(pairs)}}}'"


def _number_columns(columns: Columns) -> list[str]:
    """The columns that must hold numbers, since they are read side by side."""
    numbers: list[str] = []
    for names in columns.values():
        if not isinstance(names, str):
            numbers += names
    return numbers


def _column_names(file: Path, args: Args) -> list[str]:
    options = {**options_of(CsvConfig(**args)), **FIRST_ROWS}
    return [str(name) for name in next(frames(str(file), options)).columns]


def _types_under(file: Path, args: Args, expected: Sequence[str]) -> dict[str, str] | None:
    """{column: type} over all rows; None where it cannot be read so, or lacks a column."""
    try:
        # The first rows before the whole file: most candidates fail there, and the file may be
        # large.
        names = _column_names(file, args)
        # One column alone means that something else separates the values.
        if len(names) < 2 or not set(expected) <= set(names):
            return None
        # Without columns to look for, one without a name shows that the header does not fit.
        if not expected and any(name.startswith("Unnamed: ") for name in names):
            return None
        return column_types(frames(str(file), options_of(CsvConfig(**args))))
    except Exception:  # whatever pandas raises for arguments that do not fit
        return None


def _candidates(file: Path, args: Args, may_skip_lines: bool) -> Iterator[dict[str, Any]]:
    """Changes of the arguments, the smallest first."""
    encoding = encoding_of(file)
    if encoding is None and "encoding" in args:
        encoding = "utf-8"
    # The bytes decide the encoding: it is no choice, but goes with every other change.
    always = {}
    if encoding != args.get("encoding"):
        always["encoding"] = encoding
    choices = _choices(read_head(file).decode(encoding or "utf-8", "replace"))
    if "delimiter" in args:  # pandas' other name for sep, which wins where both are set
        choices["delimiter"] = choices.pop("sep")
    if not may_skip_lines:
        choices.pop("skiprows", None)
        # Any text with a blank in it could be split at blanks.
        for name in choices.keys() & {"sep", "delimiter"}:
            choices[name] = [sep for sep in choices[name] if sep in SEPARATORS[:3]]
    # The fewest changes first: what is advised is then the shortest line that works. 0: the
    # encoding alone.
    for count in range(MAX_CHANGES + 1):
        for names in combinations(choices, count):
            for values in product(*(choices[name] for name in names)):
                changes = {**always, **dict(zip(names, values, strict=True))}
                if any(args.get(name) != value for name, value in changes.items()):
                    yield changes


def _choices(text: str) -> dict[str, Sequence[Any]]:
    """{argument: values to try}, as far as the beginning of the file gives reason to."""
    lines = text.splitlines()
    # Only what the text gives reason to: each argument multiplies the candidates, and each
    # candidate reads the file.
    choices: dict[str, Sequence[Any]] = {}
    choices["sep"] = [separator for separator in SEPARATORS if _occurs(separator, text)]
    if re.search(r"\d,\d", text):
        choices["decimal"] = [","]
    comment = _comment_mark(lines)
    if comment is not None:
        choices["comment"] = [comment]
    # Remarks before the header, without a mark that makes them comments.
    choices["skiprows"] = range(1, min(20, len(lines)))
    if re.search(r"[,;|\t] ", text):
        choices["skipinitialspace"] = [True]
    if '"' in text:
        choices["quoting"] = [QUOTING_NONE]
    if "'" in text:
        choices["quotechar"] = ["'"]
    if re.search(r"\d[ ,.]\d{3}\b", text):
        choices["thousands"] = [",", ".", " "]
    return choices


def _occurs(separator: str, text: str) -> bool:
    if separator == BLANKS:
        return re.search(BLANKS, text) is not None
    return separator in text


def _comment_mark(lines: Sequence[str]) -> str | None:
    """The sign that begins the first line, and stands nowhere but at the beginning of lines."""
    if not lines:
        return None
    mark = lines[0].strip()[:1]
    if mark not in ("#", "%", "!", ";"):
        return None
    is_comment = all(line.startswith(mark) for line in lines if mark in line)
    return mark if is_comment else None
