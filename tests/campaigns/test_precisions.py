"""The campaign of precisions, in its quick form: the hardest splits, two steps; and that it sees a
wrong loop.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.campaigns import precisions
from tests.campaigns.precision_runs import CASES, PRECISIONS, Spec, measure, rounded, wrappers
from tests.campaigns.precisions import Row, compare
from tests.test_synchronisation import always_synchronised

QUICK = [(CASES[0], name) for name in ("tf32", "fp16", "bf16 parameters")]


def rows_of(
    run_ranks: Any, folder: Path, ranks: int, specs: list[Spec], compute: Any = None
) -> list[Row]:
    asked = [(spec, spec.arguments(folder, 2)) for spec in specs]
    found = run_ranks(ranks, measure, asked, compute)
    of_ranks = zip(*found, strict=True)
    return [
        compare(folder, spec, words, several)
        for (spec, words), several in zip(asked, of_ranks, strict=True)
    ]


def spec_of(case: Any, name: str, ranks: int, loop: str) -> Spec:
    precision = next(each for each in PRECISIONS if each.name == name)
    return Spec(case, precision, wrappers(precision, ranks)[0], ranks, loop)


def test_each_precision_keeps_its_bounds(run_ranks: Any, tmp_path: Path) -> None:
    alone = [spec_of(case, name, 1, "standard") for case, name in QUICK]
    split = [spec_of(case, name, 2, "accumulate") for case, name in QUICK]

    found = [*rows_of(run_ranks, tmp_path, 1, alone), *rows_of(run_ranks, tmp_path, 2, split)]

    for row in found:
        assert row.is_right, str(row)
        assert 1e-6 < row.of_float64 < 1e-2, "this is not the precision that it is called"
    wrong = rows_of(run_ranks, tmp_path, 2, split[:1], always_synchronised)[0]
    assert wrong.reductions == 4
    assert not wrong.is_right


def test_every_bound_is_stated() -> None:
    names = {precision.name for precision in PRECISIONS}

    assert names == precisions.CURVES.keys() == precisions.BOUNDS.keys()
    assert all(set(case.precisions) <= names for case in CASES)


@pytest.mark.parametrize(
    ("number", "expected"), [(1.0, 1.0), (1 + 2**-10, 1 + 2**-10), (1 + 2**-12, 1.0)]
)
def test_ten_bits_are_kept(number: float, expected: float) -> None:
    assert rounded(torch.tensor([number])).item() == expected
