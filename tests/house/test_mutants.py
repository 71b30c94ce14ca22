"""Every mutant of the campaign fits today's code. Which test kills it: python -m
tests.campaigns.mutants, at length.
"""

import pytest

from tests.campaigns.mutants import MUTANTS, ROOT, TESTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies(mutant: Mutant) -> None:
    """Its text is found exactly once, and what comes of it is Python."""
    source = mutant.source()

    compile(source, mutant.file, "exec")
    assert (source == (ROOT / mutant.file).read_text()) == mutant.name.startswith("none")


def test_the_tests_it_asks_exist() -> None:
    assert [path for path in TESTS if not (ROOT / path).exists()] == []
