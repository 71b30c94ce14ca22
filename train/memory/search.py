"""Which micro-batch: the sizes that make a difference, the largest that fits, the smallest that is
fast. Pure.

Nothing here knows a model or a memory: what fits, and how fast it is, is asked of functions that
are handed over. All ranks ask the same questions in the same order, as long as they get the same
answers.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

SLACK = 0.03
"""Of the best throughput: for less than that no larger micro-batch is worth its memory."""


def candidates(share: int) -> list[int]:
    """The smallest micro-batch for each number of micro-steps that a rank's share of a step can be
    cut into, ascending.

    A larger one with as many micro-steps would only be filled less evenly. For 100: 1, 2, 3, 4,
    ..., 34, 50, 100.
    """
    sizes = {math.ceil(share / steps) for steps in range(1, math.isqrt(share) + 1)}
    return sorted(sizes | set(range(1, math.ceil(share / math.isqrt(share)) + 1)))


def doublings(sizes: Sequence[int]) -> list[int]:
    """Of ascending sizes: the first, then each time the largest that is at most twice as large; and
    the last.
    """
    found = [sizes[0]]
    while found[-1] != sizes[-1]:
        twice = sizes[bisect_right(sizes, 2 * found[-1]) - 1]
        found.append(twice if twice > found[-1] else sizes[bisect_right(sizes, found[-1])])
    return found


def largest_fitting(
    sizes: Sequence[int], fits: Callable[[int], bool], guess: int | None = None
) -> int | None:
    """The largest of ascending `sizes` that fits, where each that is smaller does too; None where
    not one does.

    From a `guess` upwards or downwards in growing steps, or from the smallest by doubling: never
    from the largest, whose failure takes longest; then by halving what is left.
    """
    low, high = -1, len(sizes)  # the largest place that fits, and the smallest that does not
    place = 0 if guess is None else max(0, bisect_right(sizes, guess) - 1)
    stride = 1
    while low + 1 < high:
        if fits(sizes[place]):
            low = place
        else:
            high = place
        if high == len(sizes):  # nothing has failed yet
            twice = bisect_right(sizes, 2 * sizes[low]) - 1 if guess is None else low + stride
            place = min(max(twice, low + 1), high - 1)
        elif low == -1:  # nothing has fitted yet
            place = max(0, high - stride)
        else:
            place = (low + high) // 2
        stride *= 2
    return sizes[low] if low >= 0 else None


def all_fitting(
    sizes: Sequence[int], fits: Callable[[int], bool], guess: int | None = None
) -> list[int]:
    """Those of ascending `sizes` that fit, where the last may do so though a smaller one does not.

    The last is a whole share in one micro-step, beside which a lone rank holds no gradients. It is
    asked by itself, unless a `guess` says that it does not fit.
    """
    *several, whole = sizes
    is_likely = guess is None or guess >= whole
    largest = largest_fitting(several, fits, guess)
    fitting = [size for size in several if largest is not None and size <= largest]
    if (is_likely or fitting == several) and fits(whole):
        fitting.append(whole)
    return fitting


def smallest_fast(throughput: Mapping[int, float]) -> int:
    """Of {size: samples per second}: the smallest size within SLACK of the best."""
    best = max(throughput.values())
    return min(size for size, found in throughput.items() if found >= (1 - SLACK) * best)


def measured_down(sizes: Sequence[int], measure: Callable[[int], float]) -> dict[int, float]:
    """{size: samples per second} of ascending `sizes`, from the largest down until two in a row are
    too slow.
    """
    found: dict[int, float] = {}
    slow = 0
    for size in reversed(sizes):
        found[size] = measure(size)
        slow = slow + 1 if found[size] < (1 - SLACK) * max(found.values()) else 0
        if slow == 2:
            break
    return found
