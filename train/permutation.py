"""A keyed permutation of range(size), and keys: numbers only.

A later change of a constant here would alter every curve ever trained: tests pin its values.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
# A smaller domain mixes too little. The price: a set of 5 samples walks for some 10 ms per epoch.
MIN_BITS = 8


def permute(positions: NDArray[np.uint64], size: int, key: int) -> NDArray[np.uint64]:
    """A bijection of range(size), chosen by the 64-bit key.

    Source: format-preserving encryption by a Feistel network with cycle walking (Black and Rogaway,
    2002): the network permutes range(2 ** bits); what falls outside range(size) is permuted again
    until it falls inside.
    """
    # The largest position is size - 1. Beyond MIN_BITS the domain is less than twice the size, so
    # less than half of it walks on.
    bits = max(MIN_BITS, (size - 1).bit_length())
    result = _feistel(positions, bits, key)
    # Only those that fall outside are permuted again: the cost goes with their number.
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _feistel(result[outside], bits, key)
        outside = outside[result[outside] >= size]
    return result


def key_of(*numbers: int) -> int:
    """One 64-bit key from several integers of any size; each of them, and their order, matters."""
    key = 0
    for number in numbers:
        key = _mix(key ^ (number & _MASK64))
        # The high half too: a seed of more than 64 bits must not equal its low half.
        key = _mix(key ^ ((number >> 64) & _MASK64))
    return key


def _feistel(values: NDArray[np.uint64], bits: int, key: int) -> NDArray[np.uint64]:
    # Unequal halves where the number of bits is odd.
    low = bits // 2
    high = bits - low
    left = values >> np.uint64(low)
    right = values & np.uint64((1 << low) - 1)
    # The halves, of `high` and `low` bits, change places each round: an even number restores them.
    for i in range(ROUNDS):
        left, right = right, left ^ (_mix_array(right, _mix(key + i)) >> np.uint64(64 - high))
        high, low = low, high
    return (left << np.uint64(low)) | right


# The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit changes every output
# bit with chance 1/2.
_MASK64 = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


def _mix(number: int) -> int:
    z = (number + _GAMMA) & _MASK64
    z = ((z ^ (z >> 30)) * _M1) & _MASK64
    z = ((z ^ (z >> 27)) * _M2) & _MASK64
    return z ^ (z >> 31)


def _mix_array(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    z = values + np.uint64((key + _GAMMA) & _MASK64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_M1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_M2)
    return z ^ (z >> np.uint64(31))
