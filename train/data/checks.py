"""What is wrong with the data, told by row before training starts."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from datasets import ClassLabel, Features

from train.batch.window import IGNORED
from train.data.json_rows import KINDS
from train.data.reading import LABELS, SHOWN, Reader, is_text
from train.data.shares import DataError, Misread, Missing
from train.errors import some


@dataclass(frozen=True)
class LabelRange:
    """The smallest and the largest label of a split, and the rows that hold them; IGNORED does not
    count.
    """

    split: str
    column: str
    lowest: tuple[int, int]  # (label, row)
    highest: tuple[int, int]

    def check(self, classes: int) -> None:
        """Raise DataError for a label outside 0 .. classes - 1."""
        for label, row in (self.lowest, self.highest):
            if not 0 <= label < classes:
                raise DataError(
                    f"row {row} of split {self.split!r} has the label {label} (column "
                    f"{self.column!r}), but the model tells {classes} classes apart: labels go "
                    f"from 0 to {classes - 1} ({IGNORED}: no label)"
                )


def check_values(table: pa.Table, reader: Reader, split: str, first: int = 0) -> None:
    """Raise DataError for a value that is missing, or of another kind than the other ones are.

    Rows are counted from `first`, which is the number of the first one here.
    """
    for name in reader.names:
        column = table.column(name)
        _check_flat(column.type, name)
        _check_text(column, name)
        missing = pc.is_null(column, nan_is_null=kinds.is_floating(column.type))
        count = pc.sum(missing).as_py() or 0
        if count:
            row = first + pc.index(missing, True).as_py()
            more = f" (and in {count - 1} more)" if count > 1 else ""
            raise Missing(
                f"column {name!r} has no value in row {row} of split {split!r}{more}",
                *_filling(column, name, is_label=reader.columns.get(LABELS) == name),
            )
        _check_kinds(column, name, split, first)
        _check_finite(column, name, split, first)
        _check_lists(column, name, split, first)
    for own in reader.columns.values():
        for name in () if isinstance(own, str) else own:
            _check_number(table.column(name), name, split, first)


def label_range(table: pa.Table | None, reader: Reader, split: str) -> LabelRange | None:
    """None where labels are not one whole number for each sample."""
    own = reader.columns.get(LABELS)
    if not isinstance(own, str) or table is None or not table.num_rows:
        return None
    column = table.column(own)
    if is_text(column.type) and LABELS in reader.classes:
        column = pc.index_in(column, pa.array(reader.classes[LABELS], column.type))
    if kinds.is_floating(column.type) and pc.all(pc.equal(column, pc.floor(column))).as_py():
        column = column.cast(pa.int64())  # 1.0 is a class as well as 1
    # null: a class that the reader will tell of
    if not kinds.is_integer(column.type) or column.null_count:
        return None
    labels = column.to_numpy()
    counted = np.flatnonzero(labels != IGNORED)
    if not counted.size:
        return None
    ends = (counted[labels[counted].argmin()], counted[labels[counted].argmax()])
    lowest, highest = ((int(labels[row]), int(row)) for row in ends)
    return LabelRange(split, own, lowest, highest)


def class_names(
    table: pa.Table | None, features: Features | None, own: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers; () where labels are numbers, or a
    stream's.
    """
    if not isinstance(own, str) or features is None:
        return ()
    if isinstance(features[own], ClassLabel):
        return tuple(features[own].names)
    if table is None or not is_text(table.schema.field(own).type):
        return ()
    _check_text(table.column(own), own)
    found = sorted(name for name in pc.unique(table.column(own)).to_pylist() if name is not None)
    bare: dict[str, str] = {}
    for name in found:
        other = bare.setdefault(name.strip(), name)
        if other != name:
            what = (
                f"column {own!r} has the classes {other!r} and {name!r}, which differ in nothing "
                "but blanks"
            )
            raise Misread(what, "Write them in the same way", own)
    return tuple(found)


def class_line(name: str, classes: Sequence[str]) -> str:
    return (
        f"classes   {name}: "
        f"{some([f'{number} {text}' for number, text in enumerate(classes)], SHOWN)}"
    )


def _check_kinds(column: pa.ChunkedArray, name: str, split: str, first: int) -> None:
    """datasets (5.2) keeps a column of JSON whose values are of several kinds as it is written."""
    if not isinstance(column.type, pa.JsonType):
        return
    written = column.to_pylist()
    found = [KINDS[type(json.loads(value))] for value in written]
    (usual, count), *others = Counter(found).most_common()
    odd = next((row for row, kind in enumerate(found) if kind != usual), None)
    what = f"column {name!r} holds values of several kinds"
    if odd is None:  # datasets writes the text "5" and the number 5 in the same way: the file knows
        raise Misread(what, "Some of them are texts that look like others", name)
    more = (
        f", and {sum(number for _, number in others) - 1} more are not"
        if len(found) - count > 1
        else ""
    )
    raise DataError(
        f"{what}: row {first + odd} of split {split!r} has {found[odd]}, {written[odd]:.40}, where "
        f"{count} others have {usual}{more}. Write all of them as {usual}"
    )


def _check_flat(kind: pa.DataType, name: str) -> None:
    """Raises DataError for objects, but for images, which Arrow holds as {bytes, path}."""
    inner = kind
    while kinds.is_list(inner) or kinds.is_large_list(inner) or kinds.is_fixed_size_list(inner):
        inner = inner.value_type
    keys = [field.name for field in inner] if kinds.is_struct(inner) else []
    if not keys or set(keys) == {"bytes", "path"}:
        return
    told = some(keys, SHOWN)
    if inner is not kind and ({"role", "content"} <= set(keys) or {"from", "value"} <= set(keys)):
        raise DataError(
            f"column {name!r} holds conversations ({told} of each message), which are not read as "
            "such yet. Make one text of each in a function of your own, and name it: "
            "data.source=my_chats.texts"
        )
    raise DataError(
        f"column {name!r} holds objects within objects ({told}), which are not read as such. Give "
        "each value a column of its own in a function, such as by pandas.json_normalize, and name "
        "it: data.source=my_rows.flat"
    )


def _check_text(column: pa.ChunkedArray, name: str) -> None:
    """Arrow takes the bytes of a JSON file as they are."""
    if not is_text(column.type):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        what = f"column {name!r} holds bytes that are no UTF-8"
        raise Misread(what, "Write the file as UTF-8", name) from error
    zeros = pc.count_substring(column, "\0")
    row = pc.index(
        pc.greater(pc.multiply(zeros, 4), pc.max_element_wise(pc.utf8_length(column), 32)), True
    ).as_py()
    if row >= 0:  # UTF-16 has one in each letter; a single one may stand in a text
        raise DataError(
            f"column {name!r} holds {zeros[row]} zero bytes in row {row}, as UTF-16 read as "
            "another encoding does. Write the file as UTF-8"
        )


def _filling(column: pa.ChunkedArray, name: str, is_label: bool) -> tuple[str, str]:
    """(what to do about missing values, their column)"""
    if is_label and kinds.is_integer(column.type):
        typed = f"'data.fill={{{json.dumps(name)}: {IGNORED}}}'"
        return (
            "Leave the row out of the data, or out of the loss by the label that does not count, "
            f"type: {typed}",
            name,
        )
    if is_label:
        return "A row without a label teaches nothing: leave it out of the data", name
    if is_text(column.type):
        value = "unknown"
    elif kinds.is_integer(column.type) or kinds.is_floating(column.type):
        known = (
            pc.drop_null(column)
            if kinds.is_integer(column.type)
            else column.filter(pc.is_finite(column))
        )
        middle = pc.quantile(known, 0.5, interpolation="lower")[0].as_py() if len(known) else None
        value = "0" if middle is None else f"{middle:.6g}"
    else:
        return "Fill it in, or leave the row out", name
    typed = f"'data.fill={{{json.dumps(name)}: {value}}}'"
    return (
        "Leave the row out of the data, or fill in a value that you choose, such as the median, "
        f"type: {typed}",
        name,
    )


def _check_finite(column: pa.ChunkedArray, name: str, split: str, first: int) -> None:
    if not kinds.is_floating(column.type):
        return
    infinite = pc.is_inf(column)
    row = pc.index(infinite, True).as_py()
    if row >= 0:
        count = pc.sum(infinite).as_py()
        more = f" (and {count - 1} more are infinite)" if count > 1 else ""
        raise DataError(
            f"column {name!r} is {column[row].as_py()} in row {first + row} of split "
            f"{split!r}{more}: no number that can be trained on. Correct it, or leave the row out"
        )


def _check_lists(column: pa.ChunkedArray, name: str, split: str, first: int) -> None:
    inner = column
    while (
        kinds.is_list(inner.type)
        or kinds.is_large_list(inner.type)
        or kinds.is_fixed_size_list(inner.type)
    ):
        inner = pc.list_flatten(inner)
    if inner is not column and inner.null_count:
        row = next(row for row, value in enumerate(column.to_pylist(), first) if _has_none(value))
        raise DataError(f"column {name!r} has no value somewhere in row {row} of split {split!r}")


def _has_none(value: object) -> bool:
    return any(map(_has_none, value)) if isinstance(value, list) else value is None


def _check_number(column: pa.ChunkedArray, name: str, split: str, first: int) -> None:
    if not is_text(column.type):
        return
    for row, value in enumerate(column.to_pylist(), first):
        try:
            float(value)
        except ValueError:
            raise Misread(
                what=(
                    f"column {name!r} does not hold numbers: it is {value!r} in row {row} of "
                    f"split {split!r}"
                ),
                fix=(
                    "Correct it, leave the column out of data.columns, or see docs/own_data.md "
                    "for categories"
                ),
                column=name,
            ) from None
