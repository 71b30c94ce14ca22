"""The order of the data: a permutation that needs no memory, and that no later change may alter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.batch import key_of, sample_ids

BLOCK = 16384
AROUND_A_BLOCK = [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3, 65536, 65537]


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_every_sample_once(size: int, seed: int, epoch: int) -> None:
    ids = sample_ids(size, seed, epoch, 0, size)

    assert np.array_equal(np.sort(ids), np.arange(size))


@pytest.mark.parametrize(
    "size", [1, 2, 255, 256, 257, 4095, 4096, 4097, *AROUND_A_BLOCK, 1_000_003]
)
def test_every_sample_once_at_the_edges(size: int) -> None:
    assert np.array_equal(np.sort(sample_ids(size, 5, 2, 0, size)), np.arange(size))


@pytest.mark.parametrize("size", [1000, *AROUND_A_BLOCK])
@given(data=st.data())
def test_any_piece_is_a_piece_of_the_whole(size: int, data: st.DataObject) -> None:
    whole = sample_ids(size, 3, 1, 0, size).copy()
    start = data.draw(
        st.integers(0, size) | st.integers(max(0, min(size, BLOCK) - 3), min(size, BLOCK))
    )
    stop = data.draw(st.integers(start, size) | st.integers(start, min(start + 5, size)))

    assert np.array_equal(sample_ids(size, 3, 1, start, stop), whole[start:stop])


def test_what_a_caller_does_with_the_ids_changes_no_later_ones() -> None:
    ids = sample_ids(100, 0, 0, 0, 100)

    with pytest.raises(ValueError, match="read-only"):
        ids[0] = -1


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {
        tuple(sample_ids(50, seed, epoch, 0, 50)) for seed in range(20) for epoch in range(20)
    }

    assert len(orders) == 400


@given(numbers=st.lists(st.integers(0, 2**70), min_size=1, max_size=3), position=st.integers(0, 2))
def test_each_number_matters_to_the_key(numbers: list[int], position: int) -> None:
    other = list(numbers)
    other[position % len(numbers)] += 1

    assert key_of(*numbers) != key_of(*other)
    assert 0 <= key_of(*numbers) < 2**64


def assert_uniform(counts: NDArray[np.int64]) -> None:
    """Pearson's chi-square, within 5 standard deviations of its mean. Keys are fixed: it always
    passes, or never.
    """
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("size", "epochs"), [(20, 300), (300, 1500)])
def test_every_sample_is_as_likely_at_every_place(size: int, epochs: int) -> None:
    orders = np.stack([sample_ids(size, 7, epoch, 0, size) for epoch in range(epochs)])

    for place in (0, size // 2, size - 1):
        assert_uniform(np.bincount(orders[:, place], minlength=size))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("distance", [1, 2, 128, 5000])
def test_places_do_not_tell_how_far_apart_samples_are(seed: int, distance: int) -> None:
    ids = sample_ids(60_000, seed, 0, 0, 60_000)

    gaps = (ids[distance:] - ids[:-distance]) % 60_000

    assert_uniform(np.bincount(gaps // 600, minlength=100))


def test_an_epoch_does_not_tell_the_next() -> None:
    first, second = (sample_ids(60_000, 0, epoch, 0, 60_000) for epoch in (0, 1))

    assert_uniform(np.bincount(first // 6000 * 10 + second // 6000, minlength=100))


@pytest.mark.parametrize(
    ("size", "seed", "epoch", "start", "expected"),
    [
        (1, 0, 0, 0, [0]),
        (10, 0, 0, 0, [3, 0, 1, 5, 8, 9, 2, 7, 4, 6]),
        (10, 0, 1, 0, [2, 5, 0, 1, 4, 3, 8, 7, 9, 6]),
        (10, 1, 0, 0, [4, 3, 1, 0, 5, 2, 9, 8, 7, 6]),
        (257, 0, 0, 250, [128, 84, 176, 77, 252, 162, 113]),
        (1797, 0, 0, 0, [67, 211, 331, 1713, 13, 946, 484, 723]),
        (1438, 42, 3, 700, [113, 1103, 1414, 11, 1146, 137]),
        (65536, 0, 0, 65530, [65124, 64694, 50319, 52549, 56684, 3706]),
        (65537, 0, 0, 65532, [1210, 52341, 37410, 20391, 22240]),
        (1_000_003, 123_456_789, 7, 999_998, [522050, 214395, 136458, 968364, 664702]),
        (1000, 2**63 - 1, 0, 0, [235, 552, 311, 538, 408, 816]),
    ],
)
def test_the_order_is_that_of_every_version_before(
    size: int, seed: int, epoch: int, start: int, expected: list[int]
) -> None:
    """A change of these values alters every curve ever trained. Do not adapt them."""
    assert sample_ids(size, seed, epoch, start, start + len(expected)).tolist() == expected


def test_the_keys_are_those_of_every_version_before() -> None:
    assert [key_of(0, 0), key_of(1, 0), key_of(0, 1), key_of(2**63 - 1, 10**6)] == [
        0x2130748AAAC80268,
        0xE28195DDD9EE4956,
        0xD9EEF7F073D37C42,
        0x57959205DA1C8F8C,
    ]
