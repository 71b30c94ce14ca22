"""The rows of a run as columns: eight bytes a number, one number where it never changes. Pure.

numpy and not pandas, whose import takes as long as reading the runs: see docs/design.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Row = Mapping[str, float]
"""{metric: value}; NaN where it was not finite, absent where it was not measured."""


@dataclass(frozen=True)
class Column:
    at: NDArray[np.int32]
    """Indices of the rows that have the metric, ascending."""
    values: Numbers
    """Of these rows; NaN where it was not finite."""


class Rows:
    """Rows in order. Columns that are in the same rows share one array of indices."""

    def __init__(self, count: int, columns: Mapping[str, Column]) -> None:
        self.count = count
        self._columns: dict[str, Column] = {}
        # Most metrics are in all rows of training, so a run has few different arrays of indices.
        shared: list[NDArray[np.int32]] = []
        for name, column in columns.items():
            at = next((same for same in shared if np.array_equal(same, column.at)), None)
            if at is None:
                at = column.at
                shared.append(at)
            self._columns[name] = Column(at, _compact(column.values))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        rows: list[dict[str, float]] = [{} for _ in range(self.count)]
        for name, column in self._columns.items():
            for index, value in zip(column.at.tolist(), column.values.tolist(), strict=True):
                rows[index][name] = value
        return iter(rows)

    @property
    def metrics(self) -> list[str]:
        """In order of appearance."""
        return list(self._columns)

    def column(self, metric: str) -> Column:
        """Empty where no row has it."""
        return self._columns.get(metric) or Column(np.empty(0, np.int32), np.empty(0))

    def has(self, metric: str) -> NDArray[np.bool_]:
        """(rows,): which of them have the metric."""
        # Zeros, not NaN: a metric whose value was not finite is there all the same.
        mask = np.zeros(self.count, dtype=bool)
        mask[self.column(metric).at] = True
        return mask

    def values(self, metric: str) -> Numbers:
        """(rows,): NaN where a row does not have it, or where it was not finite."""
        column = self.column(metric)
        values = np.full(self.count, np.nan)
        values[column.at] = column.values
        return values


def union(lists: Iterable[Iterable[str]]) -> list[str]:
    """Each string once, in order of appearance."""
    strings: dict[str, None] = {}
    for strings_of_one in lists:
        strings.update(dict.fromkeys(strings_of_one))
    return list(strings)


def rows_of(rows: Iterable[Row]) -> Rows:
    indices: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            indices.setdefault(name, []).append(count)
            values.setdefault(name, []).append(value)
        count += 1
    columns = {}
    for name, at in indices.items():
        columns[name] = Column(np.array(at, np.int32), np.array(values[name], float))
    return Rows(count, columns)


def concatenate(pieces: Sequence[Rows]) -> Rows:
    # Row 0 of a piece is row `start` of all.
    starts = np.cumsum([0, *map(len, pieces)])
    columns = {}
    # In order of appearance over all pieces: a metric may be missing in the first of them.
    for name in union(piece.metrics for piece in pieces):
        parts = [piece.column(name) for piece in pieces]
        # np.int32(start): the sum stays int32, half the memory of int64.
        at = [part.at + np.int32(start) for part, start in zip(parts, starts[:-1], strict=True)]
        values = [part.values for part in parts]
        columns[name] = Column(np.concatenate(at), np.concatenate(values))
    return Rows(int(starts[-1]), columns)


def _compact(values: Numbers) -> Numbers:
    """One number that stands for all rows, where they are equal."""
    # The two ends first: most columns that change need no pass over all values.
    if len(values) and values[0] == values[-1] and (values == values[0]).all():
        return np.broadcast_to(values[:1].copy(), values.shape)
    return values
