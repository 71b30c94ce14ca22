"""The rows of a run as columns: eight bytes a number, and one number where it never
changes. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
# a metric that was not finite is NaN; one that is not there was not measured
Row = Mapping[str, float]


@dataclass(frozen=True)
class Column:
    at: NDArray[np.int32]
    """The rows that have the metric, ascending."""
    values: Numbers
    """Of these rows; NaN: it was not finite."""


class Rows:
    """Rows in order. Columns that are in the same rows share one list of them."""

    def __init__(self, count: int, columns: Mapping[str, Column]) -> None:
        self.count = count
        self._columns: dict[str, Column] = {}
        known: list[NDArray[np.int32]] = []
        for name, column in columns.items():
            at = next((same for same in known if np.array_equal(same, column.at)), column.at)
            if at is column.at:
                known.append(at)
            self._columns[name] = Column(at, _compact(column.values))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        names = [set(column.at.tolist()) for column in self._columns.values()]
        dense = {name: self.values(name) for name in self._columns}
        for i in range(self.count):
            yield {
                name: float(dense[name][i])
                for name, at in zip(self._columns, names, strict=True)
                if i in at
            }

    @property
    def metrics(self) -> list[str]:
        """In order of appearance."""
        return list(self._columns)

    def column(self, metric: str) -> Column:
        """Empty where no row has it."""
        return self._columns.get(metric) or Column(np.empty(0, np.int32), np.empty(0))

    def have(self, metric: str) -> NDArray[np.bool_]:
        """(rows,): which of them have the metric."""
        found = np.zeros(self.count, dtype=bool)
        found[self.column(metric).at] = True
        return found

    def values(self, metric: str) -> Numbers:
        """(rows,): NaN where it is not there, or was not finite."""
        found, column = np.full(self.count, np.nan), self.column(metric)
        found[column.at] = column.values
        return found


def rows_of(rows: Iterable[Row]) -> Rows:
    found: dict[str, tuple[list[int], list[float]]] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            at, values = found.setdefault(name, ([], []))
            at.append(count)
            values.append(value)
        count += 1
    columns = {
        name: Column(np.array(at, np.int32), np.array(values, float))
        for name, (at, values) in found.items()
    }
    return Rows(count, columns)


def joined(pieces: Sequence[Rows]) -> Rows:
    """One after the other."""
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    names = dict.fromkeys(name for piece in pieces for name in piece.metrics)
    columns = {}
    for name in names:
        several = [piece.column(name) for piece in pieces]
        at = [
            column.at + np.int32(start) for column, start in zip(several, starts[:-1], strict=True)
        ]
        columns[name] = Column(
            np.concatenate(at), np.concatenate([column.values for column in several])
        )
    return Rows(int(starts[-1]), columns)


def _compact(values: Numbers) -> Numbers:
    """One number for all rows where they are equal."""
    if len(values) and values[0] == values[-1] and (values == values[0]).all():
        return np.broadcast_to(values[:1].copy(), values.shape)
    return values
