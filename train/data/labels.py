"""Labels before training starts: the names of classes, and the range of their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from datasets import ClassLabel, Features

from train.batch.window import IGNORED
from train.data.arrow_table import is_text
from train.data.checks import check_text
from train.data.reading import LABELS, SHOWN, Reader
from train.data.shares import DataError, Misread
from train.errors import some


@dataclass(frozen=True)
class LabelRow:
    label: int
    row: int


@dataclass(frozen=True)
class LabelRange:
    """The smallest and the largest label of a split; IGNORED does not count."""

    split: str
    column: str
    lowest: LabelRow
    highest: LabelRow

    def check(self, classes: int) -> None:
        """Raises DataError for a label outside 0 .. classes - 1."""
        for end in (self.lowest, self.highest):
            if not 0 <= end.label < classes:
                raise DataError(
                    f"row {end.row} of split {self.split!r} has the label {end.label} (column "
                    f"{self.column!r}), but the model has {classes} classes: labels go "
                    f"from 0 to {classes - 1} ({IGNORED}: no label)"
                )


def label_range(table: pa.Table | None, reader: Reader, split: str) -> LabelRange | None:
    """None where labels are not one whole number for each sample."""
    name = reader.columns.get(LABELS)
    if not isinstance(name, str) or table is None or not table.num_rows:
        return None
    column = table.column(name)
    if is_text(column.type) and LABELS in reader.classes:
        # The class of a text is its place among the names, counted from 0.
        column = pc.index_in(column, pa.array(reader.classes[LABELS], column.type))
    if kinds.is_floating(column.type) and pc.all(pc.equal(column, pc.floor(column))).as_py():
        column = column.cast(pa.int64())  # 1.0 is a class as well as 1
    # A null is a class that the training split lacks: the reader reports it.
    if not kinds.is_integer(column.type) or column.null_count:
        return None
    labels = column.to_numpy()
    rows = np.flatnonzero(labels != IGNORED)
    if not rows.size:
        return None
    lowest = int(rows[labels[rows].argmin()])
    highest = int(rows[labels[rows].argmax()])
    return LabelRange(
        split=split,
        column=name,
        lowest=LabelRow(int(labels[lowest]), lowest),
        highest=LabelRow(int(labels[highest]), highest),
    )


def class_names(
    table: pa.Table | None, features: Features | None, column: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The names of the classes in the order of their numbers.

    () where labels are numbers, or come as a stream, whose classes are not known beforehand.
    """
    if not isinstance(column, str) or features is None:
        return ()
    if isinstance(features[column], ClassLabel):
        return tuple(features[column].names)
    if table is None or not is_text(table.schema.field(column).type):
        return ()
    # Before names are made of it: bytes in another encoding would end in a UnicodeDecodeError.
    check_text(table.column(column), column)
    values = pc.unique(table.column(column)).to_pylist()
    # Sorted: a class has its number whatever the order of the rows.
    names = sorted(name for name in values if name is not None)
    _check_blanks(names, column)
    return tuple(names)


def class_line(name: str, classes: Sequence[str]) -> str:
    """For the screen."""
    numbered = [f"{number} {text}" for number, text in enumerate(classes)]
    return f"classes   {name}: {some(numbered, SHOWN)}"


def _check_blanks(names: Sequence[str], column: str) -> None:
    """Raises Misread for two classes that differ in nothing but blanks around them."""
    by_stripped: dict[str, str] = {}
    for name in names:
        other = by_stripped.setdefault(name.strip(), name)
        if other != name:
            what = (
                f"column {column!r} has the classes {other!r} and {name!r}, which differ in "
                "nothing but blanks"
            )
            raise Misread(what, "Write them in the same way", column)
