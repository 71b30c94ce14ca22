"""Lists of Arrow as arrays: as `datasets` gives them, where each row has the same shape; else
nothing.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Features
from datasets.formatting import get_formatter

from train.data.even_lists import arrays_of_one_shape

ROWS = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]], [[0, 0, 1], [1, 0, 0]]]
NUMBERS = [pa.uint8(), pa.int16(), pa.int64(), pa.float32(), pa.float64()]


@pytest.mark.parametrize("number", NUMBERS, ids=str)
@pytest.mark.parametrize("fixed", [False, True], ids=["list", "fixed size"])
def test_as_datasets_has_them(number: pa.DataType, fixed: bool) -> None:
    inner = pa.list_(number, 3) if fixed else pa.list_(number)
    kind = pa.list_(inner, 2) if fixed else pa.list_(inner)
    column = pa.chunked_array([pa.array(ROWS[:1], kind), pa.array(ROWS, kind).slice(1)])
    table = pa.table({"x": column})
    formatter = get_formatter(
        "numpy", features=Features.from_arrow_schema(table.schema), dtype=number.to_pandas_dtype()
    )

    even = arrays_of_one_shape(column)

    theirs = formatter.format_column(table)
    assert even is not None
    assert even.dtype == theirs.dtype
    assert np.array_equal(even, theirs)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3]],
        [[1, 2], None],
        [[1, 2], [3, None]],
        [[[1], [2]], [[3], [4, 5]]],
        [["a"], ["b"]],
        [[True], [False]],
        [1, 2],
        [],
    ],
    ids=str,
)
def test_others_are_left_to_datasets(rows: list[Any]) -> None:
    column = (
        pa.chunked_array([pa.array(rows)]) if rows else pa.chunked_array([], pa.list_(pa.int64()))
    )

    assert arrays_of_one_shape(column) is None


def test_chunks_of_other_shapes() -> None:
    column = pa.chunked_array([pa.array([[1, 2]]), pa.array([[3]])])

    assert arrays_of_one_shape(column) is None
