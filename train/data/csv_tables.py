"""CSV files as tables: by pandas, through the cache of `datasets`; no field is moved, lost or read
in two ways.

Left to itself, datasets (5.2) lets pandas (3.1) find the types anew every 10,000 rows, and make an
index of what a row has more of than the header.
"""

import csv
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import fsspec
import pandas
import pyarrow as pa
from datasets import DatasetInfo, SplitGenerator
from datasets.builder import Key
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from pandas.api import types as kinds

from train.data.shares import DataError

Options = Mapping[str, Any]
"""Arguments of pandas.read_csv."""

SURPLUS = "Length of header or names does not match"
"""The beginning of pandas' warning where the first row has more fields than there are names."""


class BadLine(Exception):
    """A line that does not fit under the header."""

    def __init__(self, line: int, fields: int, names: int) -> None:
        super().__init__(f"line {line:,} has {fields} fields, and the header names {names}")
        self.line = line
        self.fields = fields
        self.names = names


class InFile(Exception):
    """Its cause was raised while `file` was read."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.file = file


class CsvTables(Csv):
    """The types of columns are those of all rows of all splits; of a stream, those of its first
    rows.
    """

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        splits = self.config.data_files
        every = tuple(chain.from_iterable(splits.values()))
        ahead = () if dl_manager.is_streaming else every
        return [
            SplitGenerator(name=name, gen_kwargs={"files": list(files), "ahead": ahead})
            for name, files in splits.items()
        ]

    def _generate_shards(self, files: list[str], ahead: Sequence[str]) -> Iterator[str]:
        yield from files

    def _generate_tables(
        self, files: list[str], ahead: Sequence[str]
    ) -> Iterator[tuple[Key, pa.Table]]:
        options = options_of(self.config)
        types = column_types(chain.from_iterable(_named(file, options) for file in ahead))
        names: list[str] = []
        for shard, file in enumerate(files):
            if not types:
                types = column_types([next(_named(file, options))])
            for number, frame in enumerate(_named(file, options, types)):
                names = names or list(frame.columns)
                yield (
                    Key(shard, number),
                    pa.Table.from_pandas(_in_order(frame, names, file), preserve_index=False),
                )


def options_of(config: CsvConfig) -> dict[str, Any]:
    """The arguments of pandas that a config of datasets stands for; where it says nothing, our own
    defaults.
    """
    options: dict[str, Any] = {**config.pd_read_csv_kwargs, "low_memory": False}
    if options["index_col"] is None:
        # None: the first field is one where rows have more fields than the header
        options["index_col"] = False
    if options["keep_default_na"] is False and options["na_values"] is None:
        # the words None and NA are values then; a field without anything is none
        options["na_values"] = [""]
    if options["engine"] not in (None, "c"):
        del options["low_memory"]
    return options


def frames(
    file: str, options: Options, types: Mapping[str, str] | None = None
) -> Iterator[pandas.DataFrame]:
    """The rows of a file, some thousand at a time. Raises what pandas raises, and BadLine."""
    repeated = repeated_names(file, options)
    checked = False
    with _strict():
        reader = pandas.read_csv(file, iterator=True, dtype=types, **options)
    with reader:
        while True:
            with _strict():
                frame = next(reader, None)
            if frame is None:
                return
            # A row that lacks a field in the middle is filled up at its end: the fields behind have
            # moved, which shows in nothing but the last column.
            if not checked and frame.shape[1] > 1 and frame.iloc[:, -1].isna().any():
                check_lengths(file, options, frame.shape[1])
                checked = True
            yield frame.rename(columns=repeated)


def repeated_names(file: str, options: Options) -> dict[str, str]:
    """{name that pandas gives: ours} for names that the header holds more than once: `a.0`, `a.1`,
    and no `a`.
    """
    if options["header"] not in ("infer", 0) or options.get("names") is not None:
        return {}
    header = header_of(file, options)
    return {name: f"{name}.0" for name in header if header.count(name) > 1}


def header_of(file: str, options: Options) -> list[str]:
    """The fields of the first line that is not skipped."""
    alone = {
        **options,
        "header": None,
        "names": None,
        "usecols": None,
        "nrows": 1,
        "chunksize": None,
        "dtype": str,
    }
    with _strict():
        first = pandas.read_csv(file, **{**alone, "keep_default_na": False, "na_values": None})
    return [str(name) for name in first.iloc[0]] if len(first) else []


def column_types(parts: Iterable[pandas.DataFrame]) -> dict[str, str]:
    """{column: the one type that holds all of its values}"""
    found: dict[str, set[str]] = {}
    for frame in parts:
        for name, column in frame.items():
            found.setdefault(str(name), set()).add(_kind(column))
    return {name: _joined(own) for name, own in found.items()}


def check_lengths(file: str, options: Options, names: int, longer: bool = False) -> None:
    """Line by line, as Python reads CSV. Raises BadLine for a row with less than `names` fields, or
    with more.
    """
    sep, skipped = options["sep"], options.get("skiprows") or 0
    if len(sep) != 1 or not isinstance(skipped, int):
        return  # a regular expression, or a choice of lines
    comment = options.get("comment")
    encoding = options["encoding"] or "utf-8-sig"
    with fsspec.open(file, "rt", encoding=encoding, compression="infer", newline="") as text:
        how = {
            name: options[name] for name in ("quotechar", "quoting", "doublequote", "escapechar")
        }
        rows = csv.reader(
            text, delimiter=sep, skipinitialspace=options["skipinitialspace"], strict=False, **how
        )
        # a header that does not count
        replaced = options.get("names") is not None and options["header"] == 0
        for row in rows:
            is_comment = bool(comment and row and row[0].startswith(comment))
            if rows.line_num <= skipped or is_comment or not "".join(row).strip():
                continue
            if replaced:
                replaced = False
                continue
            surplus = any(field.strip() for field in row[names:])
            if surplus if longer else len(row) < names:
                raise BadLine(rows.line_num, len(row), names)


def _named(
    file: str, options: Options, types: Mapping[str, str] | None = None
) -> Iterator[pandas.DataFrame]:
    try:
        yield from frames(file, options, types)
    except Exception as error:
        raise InFile(file) from error


def _in_order(frame: pandas.DataFrame, names: Sequence[str], file: str) -> pandas.DataFrame:
    """Columns count by their names, whatever their order in a file."""
    found = list(frame.columns)
    if set(found) != set(names):
        raise DataError(
            f"{file} has the columns {', '.join(map(str, found))}, and the first file of its split "
            f"has {', '.join(map(str, names))}. Give all of them the same columns"
        )
    return frame[list(names)]


def _kind(column: "pandas.Series[Any]") -> str:
    """Of the values that are there."""
    if column.isna().all():
        return "nothing"
    if kinds.is_bool_dtype(column.dtype):
        return "bool"
    if kinds.is_unsigned_integer_dtype(column.dtype):
        return "uint64"
    if kinds.is_integer_dtype(column.dtype):
        return "int64"
    return "float64" if kinds.is_float_dtype(column.dtype) else "str"


def _joined(found: set[str]) -> str:
    if len(found) == 1 and found != {"nothing"}:
        return next(iter(found))
    return "float64" if found <= {"int64", "float64", "nothing"} else "str"


class _strict(warnings.catch_warnings):
    """Fields that pandas would leave out with a warning end in an error; of its engine it says
    nothing.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", pandas.errors.ParserWarning)
        warnings.filterwarnings("error", SURPLUS, pandas.errors.ParserWarning)
