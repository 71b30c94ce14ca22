"""Draws that are forced stay within the range that they are drawn from."""

import pytest
import torch

from train.exactness.forced_draws import forced_draws


def drawn(high: bool) -> list[float]:
    with forced_draws(high):
        tensors = [
            torch.randint(1, 10, (2,), generator=torch.Generator().manual_seed(3)),
            torch.randint(10, (2,)),
            torch.randint_like(torch.zeros(2, dtype=torch.int64), 3, 7),
            torch.empty(2, dtype=torch.int64).random_(4, 9),
            torch.empty(2).uniform_(-1.0),
            torch.empty(2).uniform_(to=2.0),
            torch.empty(2).uniform_(-2.0, 3.0),
        ]
        assert len(torch.randint(1, 10, (0,))) == 0
    return [float(tensor[0]) for tensor in tensors]


def test_the_lowest_are_those_of_the_range() -> None:
    assert drawn(high=False) == [1, 0, 3, 4, -1, 0, -2]


def test_the_highest_lie_below_the_end_of_the_range() -> None:
    *integers, one, two, three = drawn(high=True)

    assert all(low <= n < end for n, (low, end) in zip(integers, RANGES, strict=True))
    assert (one, two, three) == pytest.approx((1, 2, 3), rel=1e-5)
    assert (one < 1, two < 2, three < 3) == (True, True, True)


RANGES = ((1, 10), (0, 10), (3, 7), (4, 9))
