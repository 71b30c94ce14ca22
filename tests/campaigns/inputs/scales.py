"""Columns of any size and kind under data.normalize, against exact fractions; and which are spoken
of without it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.campaigns.inputs.case import FAILS, RIGHT, SILENT, TRACE, A, B, Outcome
from tests.helpers import argv
from train.config import load
from train.data import normalized, open_datasets
from train.errors import UserError

ROWS = len(A)
KINDS: Mapping[str, Callable[[Any], pa.Array]] = {
    "float": lambda x: pa.array(x, pa.float64()),
    "single": lambda x: pa.array(np.asarray(x, np.float32)),
    "whole": lambda x: pa.array(np.asarray(np.rint(x), np.int64)),
    "text": lambda x: pa.array([repr(float(value)) for value in x]),
    "true or false": lambda x: pa.array(np.asarray(x) > np.median(x)),
    "one value": lambda x: pa.array(np.full(ROWS, x[0])),
}
SPREADS = (1e-6, 1.0, 1e6)
MIDDLES = (0.0, 1e3, 1e9)
HELD_OUT = 0.25


@dataclass(frozen=True)
class Scale:
    """A column of this kind beside one of about 1."""

    kind: str
    column: str
    spread: float
    middle: float

    @property
    def name(self) -> str:
        return f"{self.column}, {self.middle:g} +- {self.spread:g}"

    def judge(self, folder: Path) -> Outcome:
        folder.mkdir(parents=True)
        column = KINDS[self.column](A * self.spread + self.middle)
        pq.write_table(
            pa.table({"a": column, "b": B, "label": [0, 1] * (ROWS // 2)}), folder / "own.parquet"
        )
        words = argv(
            folder,
            f"data.source={folder / 'own.parquet'}",
            "data.columns={inputs: [a, b], labels: label}",
        )
        try:
            config = load([*words, "data.normalize=true", f"data.eval_fraction={HELD_OUT}"]).config
            sets = normalized(open_datasets(config, ("inputs", "labels")), config)
            notes = open_datasets(load(words).config, ("inputs", "labels")).notes
        except UserError as error:
            return Outcome(self, FAILS, str(error))
        except Exception as error:
            return Outcome(self, TRACE, f"{type(error).__name__}: {error}")
        wrong = self._wrong(sets, column) or self._unsaid(notes, column)
        return Outcome(self, SILENT if wrong else RIGHT, wrong)

    def _wrong(self, sets: Any, column: pa.Array) -> str:
        """Between the numbers that were found and those of the rows that are trained on."""
        ids = sets.train.first(0, ROWS)["sample_id"].tolist()
        kept = [row for row in range(ROWS) if row not in _held(sets)]
        if len(ids) != len(kept):
            return f"{len(ids)} rows are trained on, {len(kept)} are not held out"
        values = [Fraction(float(column[row].as_py())) for row in kept]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        deviation = float(variance) ** 0.5 or 1.0
        found = sets.fitted.mean[0].item(), sets.fitted.deviation[0].item()
        # What a float64 of this size can hold.
        near = np.isclose(found[0], float(mean), rtol=1e-15, atol=1e-12 * deviation)
        near &= np.isclose(found[1], deviation, rtol=1e-9)
        return "" if near else f"{found}, not {(float(mean), deviation)}"

    def _unsaid(self, notes: tuple[str, ...], column: pa.Array) -> str:
        values = np.array([float(value.as_py()) for value in column])
        sizes = [np.sqrt((x**2).mean()) for x in (values, B) if x.any()]
        wanted = max(sizes) > 100 * min(sizes)
        is_said = any("columns differ in scale" in note for note in notes)
        return (
            ""
            if is_said == wanted
            else f"sizes {sizes}, and it is {'said' if is_said else 'not said'}"
        )


def _held(sets: Any) -> set[int]:
    """Rows of the set that is evaluated, by their numbers in the file."""
    [batch] = sets.evaluation[""].batches(np.arange(len(sets.evaluation[""])), ROWS)
    second = {float(value): row for row, value in enumerate(B)}
    return {second[float(value)] for value in batch["inputs"][:, 1]}


def cases() -> Iterator[Scale]:
    for column, spread, middle in itertools.product(KINDS, SPREADS, MIDDLES):
        yield Scale("scale", column, spread, middle)
