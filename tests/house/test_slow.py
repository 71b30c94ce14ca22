"""The list of slow tests names tests that there are."""

from pathlib import Path

import pytest

from tests.slow import SLOW

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("prefix", SLOW)
def test_it_is_there(prefix: str) -> None:
    file, _, test = prefix.partition("::")
    name = test.partition("[")[0]

    assert (ROOT / file).is_file()
    assert not name or f"def {name}(" in (ROOT / file).read_text()
