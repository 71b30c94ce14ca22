"""What is wrong with the values of the data, reported by row before training starts."""

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from train.batch.window import IGNORED
from train.data.arrow_table import is_text
from train.data.columns import as_list
from train.data.even_lists import is_list
from train.data.json_kinds import KINDS, find_odd_kind
from train.data.reading import LABELS, SHOWN, Reader
from train.data.shares import DataError, Misread, MissingValue
from train.errors import some

IMAGE_FIELDS = {"bytes", "path"}
"""Of an image, as Arrow holds it."""
MESSAGE_FIELDS = ({"role", "content"}, {"from", "value"})
"""Of a message of a conversation, in the two formats that are common."""


@dataclass(frozen=True)
class _Column:
    """A column that is checked, and how its rows are named."""

    values: pa.ChunkedArray
    name: str
    split: str
    first_row: int

    @classmethod
    def of(cls, table: pa.Table, name: str, split: str, first_row: int) -> "_Column":
        return cls(values=table.column(name), name=name, split=split, first_row=first_row)

    @property
    def type(self) -> pa.DataType:
        return self.values.type

    def row(self, index: int) -> str:
        return f"row {self.first_row + index} of split {self.split!r}"


def check_values(table: pa.Table, reader: Reader, split: str, first: int = 0) -> None:
    """Raises DataError for a value that is missing, infinite, or of another kind than the others.

    `first` is the number of the table's first row.
    """
    for name in reader.names:
        # In this order: objects have no values to look at, text of another encoding none that could
        # be judged, and NaN is missing before it could be taken for no number.
        column = _Column.of(table, name, split, first)
        _check_flat(column)
        check_text(column.values, name)
        _check_missing(column, is_label=reader.columns.get(LABELS) == name)
        _check_kinds(column)
        _check_finite(column)
        _check_lists(column)
    for names in reader.columns.values():
        if isinstance(names, str):
            continue
        for name in as_list(names):  # read side by side: they must hold numbers
            _check_numbers(_Column.of(table, name, split, first))


def check_text(values: pa.ChunkedArray, name: str) -> None:
    """Raises DataError for text that was read in another encoding than it is written in.

    Arrow takes the bytes of a JSON file as they are.
    """
    if not is_text(values.type):
        return
    try:
        # `full`: otherwise Arrow does not look at the bytes.
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        what = f"column {name!r} holds bytes that are no UTF-8"
        raise Misread(what, "Write the file as UTF-8", name) from error
    # UTF-16 has a zero byte in nearly each letter; a single one may stand in a text.
    zeros = pc.count_substring(values, "\0")
    # More than a quarter of the letters, and more than 8 of them.
    limit = pc.max_element_wise(pc.utf8_length(values), 32)
    row = pc.index(pc.greater(pc.multiply(zeros, 4), limit), True).as_py()
    if row >= 0:
        raise DataError(
            f"column {name!r} holds {zeros[row]} zero bytes in row {row}, as UTF-16 read as "
            "another encoding does. Write the file as UTF-8"
        )


def _check_flat(column: _Column) -> None:
    """Raises DataError for objects, other than images."""
    inner = column.type
    while is_list(inner):
        inner = inner.value_type
    if not kinds.is_struct(inner):
        return
    fields = [field.name for field in inner]
    if not fields or set(fields) == IMAGE_FIELDS:
        return
    shown = some(fields, SHOWN)
    # A conversation is a list of messages; one object in each row is something else.
    is_list_of_objects = inner is not column.type
    if is_list_of_objects and any(of_message <= set(fields) for of_message in MESSAGE_FIELDS):
        raise DataError(
            f"column {column.name!r} holds conversations ({shown} of each message), which are not "
            "read as such yet. Make one text of each in a function of your own, and name it: "
            "data.source=my_chats.texts"
        )
    raise DataError(
        f"column {column.name!r} holds objects within objects ({shown}), which are not read as "
        "such. Give each value a column of its own in a function, such as by "
        "pandas.json_normalize, and name it: data.source=my_rows.flat"
    )


def _check_missing(column: _Column, is_label: bool) -> None:
    # pandas has NaN for a gap among numbers, Arrow has null.
    missing = pc.is_null(column.values, nan_is_null=kinds.is_floating(column.type))
    count = pc.sum(missing).as_py() or 0
    if not count:
        return
    row = column.row(pc.index(missing, True).as_py())
    more = f" (and in {count - 1} more)" if count > 1 else ""
    raise MissingValue(
        what=f"column {column.name!r} has no value in {row}{more}",
        fix=_fix_for_label(column) if is_label else _fix_for_missing(column),
        column=column.name,
    )


def _fix_for_label(column: _Column) -> str:
    if not kinds.is_integer(column.type):
        return "A row without a label teaches nothing: leave it out of the data"
    return (
        "Leave the row out of the data, or out of the loss by the label that does not count, set: "
        f"{_show_fill(column.name, str(IGNORED))}"
    )


def _fix_for_missing(column: _Column) -> str:
    if is_text(column.type):
        value = "unknown"
    elif kinds.is_integer(column.type) or kinds.is_floating(column.type):
        value = _median(column)
    else:
        return "Fill it in, or leave the row out"
    return (
        "Leave the row out of the data, or fill in a value that you choose, such as the median, "
        f"set: {_show_fill(column.name, value)}"
    )


def _median(column: _Column) -> str:
    """Of the values that are there; 0 where there are none."""
    if kinds.is_integer(column.type):
        present = pc.drop_null(column.values)
    else:
        present = column.values.filter(pc.is_finite(column.values))
    if not len(present):
        return "0"
    # The lower one of two: a value that the column holds, so whole numbers stay whole.
    median = pc.quantile(present, 0.5, interpolation="lower")[0].as_py()
    return "0" if median is None else f"{median:.6g}"


def _show_fill(column: str, value: str) -> str:
    return f"'data.fill={{{json.dumps(column)}: {value}}}'"


def _check_kinds(column: _Column) -> None:
    """datasets (5.2) keeps a column of JSON whose values are of several kinds as it is written."""
    if not isinstance(column.type, pa.JsonType):
        return
    values = column.values.to_pylist()
    odd = find_odd_kind([KINDS[type(json.loads(value))] for value in values])
    what = f"column {column.name!r} holds values of several kinds"
    if odd is None:  # datasets writes the text "5" and the number 5 in the same way: the file knows
        raise Misread(what, "Some of them are texts that look like others", column.name)
    value = f"{values[odd.index]:.40}"
    raise DataError(f"{what}: {odd.sentences(column.row(odd.index), value)}")


def _check_finite(column: _Column) -> None:
    if not kinds.is_floating(column.type):
        return
    infinite = pc.is_inf(column.values)
    index = pc.index(infinite, True).as_py()
    if index >= 0:
        count = pc.sum(infinite).as_py()
        more = f" (and {count - 1} more are infinite)" if count > 1 else ""
        raise DataError(
            f"column {column.name!r} is {column.values[index].as_py()} in {column.row(index)}"
            f"{more}: no number that can be trained on. Correct it, or leave the row out"
        )


def _check_lists(column: _Column) -> None:
    """Raises DataError for a value that is missing inside of a list."""
    inner = column.values
    # Level by level in Arrow; Python objects are made only to find the row of what is missing.
    while is_list(inner.type):
        inner = pc.list_flatten(inner)
    if inner is column.values or not inner.null_count:
        return
    index = next(i for i, value in enumerate(column.values.to_pylist()) if _has_none(value))
    raise DataError(f"column {column.name!r} has no value somewhere in {column.row(index)}")


def _has_none(value: object) -> bool:
    return any(map(_has_none, value)) if isinstance(value, list) else value is None


def _check_numbers(column: _Column) -> None:
    """Raises DataError for a text that is no number; pandas reads a column with one as text."""
    if not is_text(column.type):
        return
    for index, value in enumerate(column.values.to_pylist()):
        try:
            # As train.data.arrow_table.side_by_side reads them afterwards.
            float(value)
        except ValueError:
            raise Misread(
                what=(
                    f"column {column.name!r} does not hold numbers: it is {value!r} in "
                    f"{column.row(index)}"
                ),
                fix=(
                    "Correct it, leave the column out of data.columns, or see docs/own_data.md "
                    "for categories"
                ),
                column=column.name,
            ) from None
