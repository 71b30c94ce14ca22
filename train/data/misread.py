"""What readers raise because of a file, in a sentence: the file, the line or row where known, the
cause, what to type.

The one place that translates: pandas, Arrow, datasets and Python's own decoders end here.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder
from datasets.packaged_modules.csv.csv import CsvConfig

from train.data.csv_advice import (
    encoding_of,
    find_arguments,
    head_of,
    reads,
    separator_in_header,
    typed,
    without_header,
)
from train.data.csv_tables import (
    SURPLUS,
    BadLine,
    InFile,
    check_lengths,
    frames,
    header_of,
    options_of,
)
from train.data.json_rows import odd_value, what_is_wrong
from train.data.own_files import OwnFiles
from train.data.shares import DataError, Misread, Missing
from train.errors import UserError, is_out_of_memory, some

NOT_THE_FILE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EROFS,
}
"""Of an OSError: the machine's trouble, which another start may cure."""

DAMAGED = "Is it damaged, or not what its name says? Write it again, or take it out"

Asked = Mapping[str, str | Sequence[str]]
"""{name of the task: column, or columns of numbers}"""


def told(error: Exception, what: str) -> Exception:
    """The error itself where it is a sentence already, or no fault of the file's; else
    a DataError.
    """
    cause = _cause(error)
    if isinstance(cause, UserError):
        return cause
    if is_out_of_memory(cause) or (isinstance(cause, OSError) and cause.errno in NOT_THE_FILE):
        return error
    return DataError(f"{what}: {_in_one_line(cause)}")


def unreadable(
    files: OwnFiles,
    split: str,
    asked: Asked,
    error: Exception,
    alone: Callable[[OwnFiles], DatasetBuilder],
) -> Exception:
    """What `error` says of the files of a split. `alone` reads some of them, to find the one that
    it speaks of.
    """
    own = files.by_split[split]
    sentence = told(error, f"cannot read {own[0]}")
    if not isinstance(sentence, DataError) or isinstance(_cause(error), UserError):
        return sentence
    if "corresponds to no data" in str(error):
        return DataError(
            f"{own[0]} has no rows in split {split!r}: nothing stands below its header, or in it "
            "at all"
        )
    file = _file_of(error) or _first_bad(files, split, alone) or own[0]
    try:
        cause, advice = _second_look(files, file, asked, _cause(error))
    except UnicodeError as other:
        cause, advice = _of_encoding(file, other)
    except Exception as other:  # no file of that kind at all, such as a .gz that is none
        cause, advice = _in_one_line(other), DAMAGED
    return DataError(f"cannot read {file}: {cause}. {advice}")


@contextmanager
def advised(files: OwnFiles | None, asked: Asked) -> Iterator[None]:
    """Where a file was read otherwise than it was meant, the error says with which arguments it is
    read right.
    """
    try:
        yield
    except Misread as error:
        better = None if files is None else _better(files, asked, error)
        raise DataError(f"{error.what}. {better or error.fix}") from error


def _better(files: OwnFiles, asked: Asked, error: Misread) -> str | None:
    """What to do about the files; None: nothing that is known here."""
    for file in next(iter(files.by_split.values())):
        if files.kind in ("json", "text") and (encoding := encoding_of(file)) not in (
            None,
            files.args.get("encoding"),
        ):
            return (
                f"{file} is read right with another encoding. Type: "
                f"{typed({**files.args, 'encoding': encoding})}"
            )
        if (
            files.kind == "json"
            and error.column
            and (odd := odd_value(file, error.column, files.args))
        ):
            return f"{odd[0].upper()}{odd[1:]}"
        if files.kind == "text" and error.column is None:
            found = find_arguments(file, {"sep": ","}, *_wanted(asked)) or find_arguments(
                file, {}, *_wanted(asked)
            )
            if found is not None:
                return (
                    "It is a table. Type: data.source=csv "
                    f"{typed({'data_files': str(file), **found})}"
                )
        if files.kind != "csv":
            continue
        if isinstance(error, Missing):
            return _words_for_nothing(file, files.given, str(error.column))
        found = find_arguments(file, files.given, *_wanted(asked))
        if found is None and error.column is None:
            found = find_arguments(file, files.given, (), ())
        if found is not None:
            return (
                f"{_how(found, files.given)}{file} is read right with other arguments. Type: "
                f"{typed(found)}"
            )
        if error.column is None and (sep := separator_in_header(file, files.given)):
            parted = {**files.given, "sep": sep}  # which may show what else is odd
            return f"{_how(parted, files.given)}type: {typed(parted)}"
        if error.column is None and (count := without_header(file, files.given)):
            return _without_names(file, count, asked, files.given)
    return None


def _words_for_nothing(file: Path, given: Mapping[str, Any], column: str) -> str | None:
    """Where no field of a column is empty, but pandas takes words such as None and NA
    for nothing.
    """
    as_words = {**given, "keep_default_na": False}
    try:
        parts = [frame[column] for frame in frames(str(file), options_of(CsvConfig(**as_words)))]
    except Exception:  # another file of the split was meant
        return None
    if any(part.isna().any() for part in parts):
        return None
    read = frames(str(file), options_of(CsvConfig(**given)))
    taken = {
        str(word)
        for part, frame in zip(parts, read, strict=True)
        for word in part[frame[column].isna()]
    }
    words = some(sorted(map(repr, taken)))
    return (
        f"The file has {words} there, which pandas reads as nothing. If it is a value, type: "
        f"{typed(as_words)}"
    )


def _how(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if "sep" not in found or "sep" in given:
        return ""
    shown = "blanks" if found["sep"] == r"\s+" else repr(found["sep"])
    return (
        f"Its values seem to be parted by {shown}, not by "
        f"{'commas' if found['sep'] != ',' else 'tabs'}: "
    )


def _without_names(file: Path, count: int, asked: Asked, given: Mapping[str, Any]) -> str:
    wanted, _ = _wanted(asked)
    if len(wanted) == count:
        return (
            f"The first line of {file} holds values, not names. Type: "
            f"{typed({**given, 'names': list(wanted)})}"
        )
    names = [f"c{number}" for number in range(count)]
    return (
        f"The first line of {file} holds values, not names. Name all columns, and say which is "
        f"what; if the last one is the label, type: {typed({**given, 'names': names})} "
        f"'data.columns={{inputs: [{', '.join(names[:-1])}], labels: {names[-1]}}}'"
    )


def _second_look(files: OwnFiles, file: Path, asked: Asked, cause: Exception) -> tuple[str, str]:
    """(what is wrong with a file, what to do)"""
    if files.kind == "csv":
        return _of_csv(file, files.given, asked, cause)
    if isinstance(cause, UnicodeError):
        return _of_encoding(file, cause)
    if files.kind == "json":
        if encoding := encoding_of(file):
            return "it is no UTF-8", f"Type: {typed({**files.args, 'encoding': encoding})}"
        if wrong := what_is_wrong(file, files.args):
            return wrong, "Correct it there"
    return _in_one_line(cause), DAMAGED


def _of_encoding(file: Path, cause: UnicodeError) -> tuple[str, str]:
    if encoding := encoding_of(file):
        return f"it is no UTF-8 ({_in_one_line(cause)})", f"Type: {typed({'encoding': encoding})}"
    return _in_one_line(
        cause
    ), f"It is UTF-8, as far as its bytes tell. Type: {typed({'encoding': 'utf-8'})}"


def _of_csv(
    file: Path, given: Mapping[str, Any], asked: Asked, cause: Exception
) -> tuple[str, str]:
    wanted, numbers = _wanted(asked)
    line = _bad_line(file, given, cause)
    said = _in_one_line(cause) if line is None else str(line)
    found = find_arguments(file, given, wanted, numbers) or find_arguments(file, given, (), ())
    if found is not None:
        return said, f"It is read with other arguments. Type: {typed(found)}"
    if isinstance(cause, UnicodeError):
        return _of_encoding(file, cause)
    if line is not None and line.fields < line.names:
        return (
            said,
            "Where one is empty, write its comma all the same: the fields behind it have moved",
        )
    if line is not None and line.fields == line.names + 1:
        every = header_of(str(file), options_of(CsvConfig(**given)))
        first = typed({**given, "header": 0, "names": ["row", *every]})
        last = typed({**given, "header": 0, "names": [*every, "more"]})
        return (
            said,
            f"If the first field has no name, type: {first} If the last one has none: {last}",
        )
    if b"\0" in head_of(file):
        return (
            said,
            "It holds bytes that are no text. Is it a spreadsheet, or packed? Save it as CSV",
        )
    skipping = {**given, "on_bad_lines": "skip"}
    if reads(file, skipping, wanted):
        return said, f"Correct the line, or leave such lines out, type: {typed(skipping)}"
    return said, "Correct it there" if not given else f"Correct it there, or look at {typed(given)}"


def _bad_line(file: Path, given: Mapping[str, Any], cause: Exception) -> BadLine | None:
    """Where rows and header do not fit together; None: that is not what is wrong."""
    if isinstance(cause, BadLine):
        return cause
    if SURPLUS not in str(cause) and "Expected" not in str(cause):
        return None
    try:
        options = options_of(CsvConfig(**given))
        check_lengths(str(file), options, len(header_of(str(file), options)), longer=True)
    except BadLine as line:
        return line
    except Exception:  # the arguments themselves are wrong
        return None
    return None


def _wanted(asked: Asked) -> tuple[list[str], list[str]]:
    """(columns, those of them that must hold numbers)"""
    lists = [[own] if isinstance(own, str) else list(own) for own in asked.values()]
    numbers = [name for own in asked.values() if not isinstance(own, str) for name in own]
    return list(dict.fromkeys(name for own in lists for name in own)), numbers


def _first_bad(
    files: OwnFiles, split: str, alone: Callable[[OwnFiles], DatasetBuilder]
) -> Path | None:
    """The first file that cannot be read to its end, alone."""
    for file in files.by_split[split]:
        try:
            rows = alone(files.of(file)).as_streaming_dataset("train")
            for _ in rows.with_format("arrow").iter(batch_size=10_000):
                pass
        except Exception:
            return file
    return None


def _file_of(error: BaseException | None) -> Path | None:
    while error is not None:
        if isinstance(error, InFile):
            return Path(error.file)
        error = error.__cause__
    return None


def _cause(error: Exception) -> Exception:
    """The innermost: datasets tells why in the cause of its error."""
    while isinstance(error.__cause__, Exception) and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _in_one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["nothing in it"]
    return f"{type(error).__name__}: {lines[0].strip()}"
