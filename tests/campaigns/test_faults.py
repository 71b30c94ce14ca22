"""The quick form of each row of the campaign of faults (python -m tests.campaigns.faults --full does it at length)."""

from pathlib import Path

import pytest

from tests.campaigns.faults.table import ROWS


@pytest.mark.parametrize(
    "number", [pytest.param(name, marks=pytest.mark.slow if row.slow else ()) for name, row in ROWS.items()]
)
def test_survives(number: str, tmp_path: Path) -> None:
    ROWS[number].run(tmp_path, False)
