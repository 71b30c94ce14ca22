"""What lies outside of modules and task is found, and put back."""

from torch import nn

from train.exactness.hidden_state import capture_all


def counting(package: str) -> type[nn.Module]:
    return type("Block", (nn.Module,), {"__module__": package, "calls": 0})


def test_two_classes_of_one_name_are_two() -> None:
    kinds = [counting("one"), counting("other")]
    before = capture_all(nn.Sequential(*(kind() for kind in kinds)), object())

    for kind in kinds:
        kind.calls = 1
    before.restore()

    assert [kind.calls for kind in kinds] == [0, 0]
