"""The trial before the first step against a zoo: what is inexact is found, what is exact is not flagged."""

import pytest

from tests.exactness.zoo.animals import Animal, true_error
from tests.exactness.zoo.exact import EXACT
from tests.exactness.zoo.inexact import INEXACT
from tests.exactness.zoo.keeper import tried

DECLARED = ("draws that say that they are invariant", "an average only a log reads")


def name(animal: Animal) -> str:
    return animal.name


@pytest.mark.parametrize("animal", INEXACT, ids=name)
def test_what_is_inexact_is_found(animal: Animal) -> None:
    assert true_error(animal, draws=10 if "0.02" in animal.name else 1) > 1e-5

    assert tried(animal).exact == "false"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of reentrant checkpointing in eval mode
@pytest.mark.parametrize("animal", EXACT, ids=name)
def test_what_is_exact_is_not_flagged(animal: Animal) -> None:
    assert true_error(animal) < 2e-7

    found = tried(animal)

    assert found.exact == ("declared" if animal.name in DECLARED else "verified"), found.reasons
