"""What readers of files raise, as one sentence: the file, its line, the cause, and what to type.

The only module that translates the errors of pandas, Arrow, datasets and Python's decoders.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import DatasetBuilder

from train.data.columns import Columns
from train.data.csv_advice import find_arguments, show_args
from train.data.csv_errors import (
    Diagnosis,
    diagnose_csv,
    diagnose_encoding,
    fix_for_csv,
    in_one_line,
)
from train.data.csv_tables import InFile
from train.data.json_errors import odd_value, syntax_error
from train.data.local_files import LocalFiles
from train.data.shares import DataError, Misread, MissingValue
from train.data.text_encoding import encoding_of
from train.errors import UserError, is_out_of_memory

MACHINE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EROFS,
}
"""Of an OSError: no fault of the file's; another start may succeed."""

DAMAGED = "Is it damaged, or not what its name says? Write it again, or take it out"

OpenFiles = Callable[[LocalFiles], DatasetBuilder]


def as_data_error(error: Exception, what: str) -> Exception:
    """A DataError that begins with `what`; a UserError, or one of the machine, as it is."""
    cause = _innermost(error)
    if isinstance(cause, UserError):
        return cause
    # A full disk is no fault of the data: a DataError would end with the exit code of a bad config,
    # though another start may succeed.
    is_of_machine = isinstance(cause, OSError) and cause.errno in MACHINE_ERRORS
    if is_of_machine or is_out_of_memory(cause):
        return error
    return DataError(f"{what}: {in_one_line(cause)}")


def explain_unreadable(
    files: LocalFiles,
    split: str,
    columns: Columns,
    error: Exception,
    open_files: OpenFiles,
) -> Exception:
    """What `error` means for the files of a split.

    `open_files` reads some of them again, to find the one that the error is about.
    """
    paths = files.by_split[split]
    translated = as_data_error(error, f"cannot read {paths[0]}")
    if not isinstance(translated, DataError) or isinstance(_innermost(error), UserError):
        return translated
    if "corresponds to no data" in str(error):
        return DataError(
            f"{paths[0]} has no rows in split {split!r}: nothing stands below its header, or in it "
            "at all"
        )
    # One after the other, alone: what Arrow raises for a damaged file does not always name it.
    file = _file_of(error) or _first_unreadable(files, split, open_files) or paths[0]
    try:
        diagnosis = _diagnose(files, file, columns, _innermost(error))
    except UnicodeError as other:
        diagnosis = diagnose_encoding(file, other)
    except Exception as other:  # not of that kind at all, such as a .gz that is not compressed
        diagnosis = Diagnosis(in_one_line(other), DAMAGED)
    return DataError(f"cannot read {file}: {diagnosis.cause}. {diagnosis.fix}")


@contextmanager
def explain_misread(files: LocalFiles | None, columns: Columns) -> Iterator[None]:
    """Replace the advice of a Misread by arguments that were tried on the file, if any help."""
    try:
        yield
    except Misread as error:
        fix = None
        if files is not None:
            fix = _better_fix(files, columns, error)
        raise DataError(f"{error.what}. {fix or error.fix}") from error


def _better_fix(files: LocalFiles, columns: Columns, error: Misread) -> str | None:
    for file in next(iter(files.by_split.values())):
        fix = _fix_for(files, file, columns, error)
        is_of_one_file = files.kind == "csv" and isinstance(error, MissingValue)
        if fix is not None or is_of_one_file:
            return fix
    return None


def _fix_for(files: LocalFiles, file: Path, columns: Columns, error: Misread) -> str | None:
    if files.kind == "csv":
        return fix_for_csv(file, files.reader_args, columns, error)
    if files.kind not in ("json", "text"):
        return None
    # The bytes come before the columns: in another encoding no value is what it seems.
    encoding = encoding_of(file)
    if encoding is not None and encoding != files.args.get("encoding"):
        args = show_args({**files.args, "encoding": encoding})
        return f"{file} is read right with another encoding. Set: {args}"
    if files.kind == "json":
        odd = odd_value(file, error.column, files.args) if error.column else ""
        if not odd:
            return None
        return odd[0].upper() + odd[1:]
    if error.column is not None:
        return None
    args_of_table = find_arguments(file, {"sep": ","}, columns) or find_arguments(file, {}, columns)
    if args_of_table is None:
        return None
    args = show_args({"data_files": str(file), **args_of_table})
    return f"It is a table. Set: data.source=csv {args}"


def _diagnose(files: LocalFiles, file: Path, columns: Columns, cause: Exception) -> Diagnosis:
    """Look at a file a second time, after its reader has failed."""
    if files.kind == "csv":
        return diagnose_csv(file, files.reader_args, columns, cause)
    if isinstance(cause, UnicodeError):
        return diagnose_encoding(file, cause)
    if files.kind == "json":
        encoding = encoding_of(file)
        if encoding is not None:
            args = show_args({**files.args, "encoding": encoding})
            return Diagnosis("it is no UTF-8", f"Set: {args}")
        message = syntax_error(file, files.args)
        if message:
            return Diagnosis(message, "Correct it there")
    return Diagnosis(in_one_line(cause), DAMAGED)


def _first_unreadable(files: LocalFiles, split: str, open_files: OpenFiles) -> Path | None:
    """The first file of a split that cannot be read to its end, alone."""
    for file in files.by_split[split]:
        try:
            rows = open_files(files.only(file)).as_streaming_dataset("train")
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


def _innermost(error: Exception) -> Exception:
    """The first cause: datasets wraps what its readers raise."""
    while isinstance(error.__cause__, Exception) and not isinstance(error, UserError):
        error = error.__cause__
    return error
