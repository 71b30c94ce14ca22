"""What is wrong with a CSV file that pandas cannot read, or reads otherwise than it is meant."""

from dataclasses import dataclass
from pathlib import Path

from datasets.packaged_modules.csv.csv import CsvConfig

from train.data.columns import Columns, flat_columns
from train.data.csv_advice import (
    BLANKS,
    NO_COLUMNS,
    Args,
    columns_without_header,
    find_arguments,
    reads,
    separator_in_header,
    show_args,
)
from train.data.csv_tables import (
    SURPLUS,
    BadLine,
    check_lengths,
    frames,
    header_of,
    options_of,
)
from train.data.shares import Misread, MissingValue
from train.data.text_encoding import encoding_of, read_head
from train.errors import some


@dataclass(frozen=True)
class Diagnosis:
    cause: str  # within a sentence
    fix: str  # sentences: what to do about it


def in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["nothing in it"]
    return f"{type(error).__name__}: {lines[0].strip()}"


def diagnose_encoding(file: Path, error: UnicodeError) -> Diagnosis:
    encoding = encoding_of(file)
    if encoding is None:
        # What is wrong is the encoding that the config names.
        args = show_args({"encoding": "utf-8"})
        return Diagnosis(in_one_line(error), f"Its bytes are UTF-8. Set: {args}")
    args = show_args({"encoding": encoding})
    return Diagnosis(f"it is no UTF-8 ({in_one_line(error)})", f"Set: {args}")


def diagnose_csv(file: Path, args: Args, columns: Columns, error: Exception) -> Diagnosis:
    """Why pandas has raised `error` for a file."""
    line = _bad_line(file, args, error)
    cause = in_one_line(error) if line is None else str(line)
    # Arguments that find the columns; else those that make any table of it.
    better = find_arguments(file, args, columns) or find_arguments(file, args, NO_COLUMNS)
    if better is not None:
        return Diagnosis(cause, f"It is read with other arguments. Set: {show_args(better)}")
    if isinstance(error, UnicodeError):
        return diagnose_encoding(file, error)
    return Diagnosis(cause, _fix_of_line(file, args, columns, line))


def fix_for_csv(file: Path, args: Args, columns: Columns, error: Misread) -> str | None:
    """How a file is read as it is meant; None: that is not known here."""
    if isinstance(error, MissingValue):
        return _fix_for_words(file, args, str(error.column))
    better = find_arguments(file, args, columns)
    if better is None and error.column is None:
        better = find_arguments(file, args, NO_COLUMNS)
    if better is not None:
        reason = _reason_of_separator(better, args)
        return f"{reason}{file} is read right with other arguments. Set: {show_args(better)}"
    # One column is at fault, so the header was read right: nothing below would help.
    if error.column is not None:
        return None
    separator = separator_in_header(file, args)
    if separator is not None:
        # It does not help alone, but may show what else is wrong.
        separated = {**args, "sep": separator}
        return f"{_reason_of_separator(separated, args)}set: {show_args(separated)}"
    count = columns_without_header(file, args)
    if count:
        return _fix_for_no_header(file, count, columns, args)
    return None


def _fix_of_line(file: Path, args: Args, columns: Columns, line: BadLine | None) -> str:
    """What to do about a file that no other arguments read."""
    if line is not None and line.fields < line.names:
        return "Where one is empty, write its comma all the same: the fields behind it have moved"
    # One field too many in each row: a column of row numbers, or of remarks, without a name.
    if line is not None and line.fields == line.names + 1:
        names = header_of(str(file), options_of(CsvConfig(**args)))
        first = show_args({**args, "header": 0, "names": ["row", *names]})
        last = show_args({**args, "header": 0, "names": [*names, "more"]})
        return f"If the first field has no name, set: {first} If the last one has none: {last}"
    if b"\0" in read_head(file):
        return "It holds bytes that are no text. Is it a spreadsheet, or packed? Save it as CSV"
    skipping = {**args, "on_bad_lines": "skip"}
    if reads(file, skipping, columns):
        return f"Correct the line, or leave such lines out. Set: {show_args(skipping)}"
    if args:
        return f"Correct it there, or look at {show_args(args)}"
    return "Correct it there"


def _fix_for_words(file: Path, args: Args, column: str) -> str | None:
    """For a column without empty fields, whose words pandas takes for missing values, as None, NA.

    None: a field is empty.
    """
    as_words = {**args, "keep_default_na": False}
    try:
        # Read twice, in the same chunks: with the words as they are, and as gaps.
        with_words = [
            frame[column] for frame in frames(str(file), options_of(CsvConfig(**as_words)))
        ]
    except Exception:  # another file of the split was meant
        return None
    if any(part.isna().any() for part in with_words):
        return None
    words: set[str] = set()
    without_words = frames(str(file), options_of(CsvConfig(**args)))
    for part, frame in zip(with_words, without_words, strict=True):
        words.update(map(str, part[frame[column].isna()]))
    shown = some(sorted(map(repr, words)))
    return (
        f"The file has {shown} there, which pandas reads as nothing. If it is a value, set: "
        f"{show_args(as_words)}"
    )


def _reason_of_separator(better: Args, args: Args) -> str:
    """The beginning of a sentence; '' where the separator is not what changes."""
    if "sep" not in better or "sep" in args:
        return ""
    separator = "blanks" if better["sep"] == BLANKS else repr(better["sep"])
    default = "commas" if better["sep"] != "," else "tabs"
    return f"Its values seem to be separated by {separator}, not by {default}: "


def _fix_for_no_header(file: Path, count: int, columns: Columns, args: Args) -> str:
    expected = flat_columns(columns)
    if len(expected) == count:
        named = show_args({**args, "names": expected})
        return f"The first line of {file} holds values, not names. Set: {named}"
    names = [f"c{number}" for number in range(count)]
    return (
        f"The first line of {file} holds values, not names. Name all columns, and say which is "
        f"what; if the last one is the label, set: {show_args({**args, 'names': names})} "
        f"'data.columns={{inputs: [{', '.join(names[:-1])}], labels: {names[-1]}}}'"
    )


def _bad_line(file: Path, args: Args, error: Exception) -> BadLine | None:
    """The line that does not fit under the header; None: that is not what is wrong."""
    if isinstance(error, BadLine):
        return error
    # pandas' C parser: Expected 3 fields in line 5, saw 4.
    if SURPLUS not in str(error) and "Expected" not in str(error):
        return None
    try:
        options = options_of(CsvConfig(**args))
        check_lengths(str(file), options, len(header_of(str(file), options)), longer=True)
    except BadLine as line:
        return line
    except Exception:  # the arguments themselves are wrong
        return None
    return None
