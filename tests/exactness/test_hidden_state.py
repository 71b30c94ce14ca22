"""What lies outside of modules and task is found, and put back."""

import pytest
from torch import nn

from train.exactness.hidden_state import capture_all


def counting(package: str) -> type[nn.Module]:
    return type("Block", (nn.Module,), {"__module__": package, "calls": 0})


@pytest.mark.parametrize("packages", [("one", "other"), ("one", "one")])
def test_two_classes_of_one_name_are_two(packages: tuple[str, str]) -> None:
    """Also two that a function made, one after the other, in the same file."""
    kinds = [counting(package) for package in packages]
    before = capture_all(nn.Sequential(*(kind() for kind in kinds)), object())

    for kind in kinds:
        kind.calls = 1
    before.restore()

    assert [kind.calls for kind in kinds] == [0, 0]
