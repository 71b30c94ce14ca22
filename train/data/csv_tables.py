"""CSV files as tables: read by pandas, through the cache of `datasets`.

No field is moved, lost or read in two ways. Left to itself, datasets (5.2) lets pandas (3.1) infer
the types anew every 10,000 rows, and make an index of surplus fields of a row.
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

NO_VALUES = "nothing"
"""The type of a column whose values are all missing."""

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
    """Builder whose column types are those of all rows of all splits.

    Those of a stream are of its first rows.
    """

    def _info(self) -> DatasetInfo:
        return DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        splits = self.config.data_files
        # Files whose rows decide the types; a stream cannot wait for all of them. In a tuple, since
        # datasets takes each list of the arguments for one of shards.
        typed = () if dl_manager.is_streaming else tuple(chain.from_iterable(splits.values()))
        generators = []
        for name, files in splits.items():
            arguments = {"files": list(files), "typed": typed}
            generators.append(SplitGenerator(name=name, gen_kwargs=arguments))
        return generators

    def _generate_shards(self, files: list[str], typed: Sequence[str]) -> Iterator[str]:
        yield from files

    def _generate_tables(
        self, files: list[str], typed: Sequence[str]
    ) -> Iterator[tuple[Key, pa.Table]]:
        options = options_of(self.config)
        # A first pass for the types of all files, a second one for the rows: no more than a chunk
        # is in memory in either.
        types = column_types(chain.from_iterable(_frames_of(file, options) for file in typed))
        names: list[str] = []
        for shard, file in enumerate(files):
            # A stream: the first rows decide, and a later value of another type is an error.
            if not types:
                types = column_types([next(_frames_of(file, options))])
            for number, frame in enumerate(_frames_of(file, options, types)):
                # Of the first file of the split; the columns of others are put into this order.
                names = names or list(frame.columns)
                ordered = _in_order(frame, names, file)
                yield Key(shard, number), pa.Table.from_pandas(ordered, preserve_index=False)


def options_of(config: CsvConfig) -> dict[str, Any]:
    """The arguments of pandas for a config of datasets, with our own defaults."""
    # low_memory would infer the types of each chunk of a file by itself.
    options: dict[str, Any] = {**config.pd_read_csv_kwargs, "low_memory": False}
    if options["index_col"] is None:
        # By None, pandas makes an index of the first field where rows are longer than the header.
        options["index_col"] = False
    if options["keep_default_na"] is False and options["na_values"] is None:
        # The words None and NA are values then; an empty field is still a missing one.
        options["na_values"] = [""]
    # Only the C parser takes it.
    if options["engine"] not in (None, "c"):
        del options["low_memory"]
    return options


def frames(
    file: str, options: Options, types: Mapping[str, str] | None = None
) -> Iterator[pandas.DataFrame]:
    """The rows of a file, some thousand at a time. Raises what pandas raises, and BadLine."""
    # pandas would name the second of two columns `a` a.1, and leave the first one `a`: data.columns
    # could mean either.
    repeated = repeated_names(file, options)
    checked = False
    # Around each call, and not around the loop: filters of warnings are global, and between two
    # frames other code runs.
    with _strict():
        reader = pandas.read_csv(file, iterator=True, dtype=types, **options)
    with reader:
        while True:
            with _strict():
                frame = next(reader, None)
            if frame is None:
                return
            # pandas fills up a row that lacks a field in the middle at its end: the fields behind
            # have moved, which shows in nothing but the last column.
            if not checked and frame.shape[1] > 1 and frame.iloc[:, -1].isna().any():
                check_lengths(file, options, frame.shape[1])
                checked = True
            yield frame.rename(columns=repeated)


def repeated_names(file: str, options: Options) -> dict[str, str]:
    """{name by pandas: ours}, of names that the header repeats: `a.0`, `a.1`, and no `a`."""
    if options["header"] not in ("infer", 0) or options.get("names") is not None:
        return {}
    header = header_of(file, options)
    return {name: f"{name}.0" for name in header if header.count(name) > 1}


def header_of(file: str, options: Options) -> list[str]:
    """The fields of the first line that is not skipped."""
    first_line = {
        **options,
        "header": None,
        "names": None,
        "usecols": None,
        "nrows": 1,
        "chunksize": None,
        "dtype": str,
        "keep_default_na": False,
        "na_values": None,
    }
    with _strict():
        frame = pandas.read_csv(file, **first_line)
    if not len(frame):
        return []
    return [str(name) for name in frame.iloc[0]]


def column_types(parts: Iterable[pandas.DataFrame]) -> dict[str, str]:
    """{column: the one type that holds all of its values}"""
    # A set per column, so that the order of the chunks plays no part.
    types: dict[str, set[str]] = {}
    for frame in parts:
        for name, column in frame.items():
            types.setdefault(str(name), set()).add(_type_of(column))
    return {name: _common_type(of_parts) for name, of_parts in types.items()}


def check_lengths(file: str, options: Options, names: int, longer: bool = False) -> None:
    """Raises BadLine for the first row with less than `names` fields; `longer`: with more.

    Python's csv module reads the file, since pandas does not name the line.
    """
    separator = options["sep"]
    skipped = options.get("skiprows") or 0
    if len(separator) != 1 or not isinstance(skipped, int):
        return  # a regular expression, or a choice of lines
    comment = options.get("comment")
    dialect = {
        name: options[name]
        for name in ("quotechar", "quoting", "doublequote", "escapechar", "skipinitialspace")
    }
    # -sig: a byte order mark would count as a part of the first field.
    encoding = options["encoding"] or "utf-8-sig"
    with fsspec.open(file, "rt", encoding=encoding, compression="infer", newline="") as text:
        rows = csv.reader(text, delimiter=separator, strict=False, **dialect)
        # pandas drops the header of a file where `names` replaces it.
        is_header = options.get("names") is not None and options["header"] == 0
        for row in rows:
            is_comment = bool(comment and row and row[0].startswith(comment))
            is_empty = not "".join(row).strip()
            if rows.line_num <= skipped or is_comment or is_empty:
                continue
            if is_header:
                is_header = False
                continue
            # Commas at the end of a row are no surplus: nothing stands behind them.
            surplus = "".join(row[names:]).strip()
            is_bad = bool(surplus) if longer else len(row) < names
            if is_bad:
                raise BadLine(rows.line_num, len(row), names)


def _frames_of(
    file: str, options: Options, types: Mapping[str, str] | None = None
) -> Iterator[pandas.DataFrame]:
    """As `frames`, but raises InFile."""
    try:
        yield from frames(file, options, types)
    except Exception as error:
        raise InFile(file) from error


def _in_order(frame: pandas.DataFrame, names: Sequence[str], file: str) -> pandas.DataFrame:
    """Columns count by their names, whatever their order in a file."""
    # By position, a file with its columns in another order would be trained on silently.
    columns = list(frame.columns)
    if set(columns) != set(names):
        raise DataError(
            f"{file} has the columns {', '.join(map(str, columns))}, and the first file of its "
            f"split has {', '.join(map(str, names))}. Give all of them the same columns"
        )
    return frame[list(names)]


def _type_of(column: "pandas.Series[Any]") -> str:
    """Of the values that are not missing."""
    if column.isna().all():
        return NO_VALUES
    if kinds.is_bool_dtype(column.dtype):
        return "bool"
    if kinds.is_unsigned_integer_dtype(column.dtype):
        return "uint64"
    if kinds.is_integer_dtype(column.dtype):
        return "int64"
    if kinds.is_float_dtype(column.dtype):
        return "float64"
    return "str"


def _common_type(types: set[str]) -> str:
    if len(types) == 1 and types != {NO_VALUES}:
        return next(iter(types))
    # A missing value is NaN, which integers cannot hold.
    if types <= {"int64", "float64", NO_VALUES}:
        return "float64"
    return "str"


class _strict(warnings.catch_warnings):
    """Surplus fields, which pandas drops with a warning, end in an error.

    Its warnings about the choice of a parser are not shown.
    """

    def __enter__(self) -> None:
        super().__enter__()
        # The filter that is added last counts first.
        warnings.simplefilter("ignore", pandas.errors.ParserWarning)
        warnings.filterwarnings("error", SURPLUS, pandas.errors.ParserWarning)
