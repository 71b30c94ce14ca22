"""Which micro-batch: the sizes worth trying, the largest that fits, the smallest that is fast.

Pure functions: what fits and how fast it is are asked of functions passed in. Given the same
answers, all ranks ask the same questions in the same order.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

SLACK = 0.03
"""Of the best throughput: a smaller gain is not worth the memory of a larger micro-batch."""


def candidates(share: int) -> list[int]:
    """The smallest micro-batch for each possible number of micro-steps, ascending.

    `share`: a rank's samples of a step. A larger micro-batch with as many micro-steps would only
    leave the last one emptier. For 100: 1, 2, 3, 4, ..., 34, 50, 100.
    """
    # Up to `root` micro-steps each number of them has its own size; with more of them, every size
    # up to share / root occurs.
    root = math.isqrt(share)
    few_steps = {math.ceil(share / steps) for steps in range(1, root + 1)}
    many_steps = range(1, math.ceil(share / root) + 1)
    return sorted(few_steps.union(many_steps))


def doublings(sizes: Sequence[int]) -> list[int]:
    """Of ascending sizes: from the first to the last, each at most twice the one before.

    Where the next size is more than twice as large, that one.
    """
    doubled = [sizes[0]]
    while doubled[-1] != sizes[-1]:
        following = bisect_right(sizes, doubled[-1])
        at_most_twice = bisect_right(sizes, 2 * doubled[-1]) - 1
        doubled.append(sizes[max(following, at_most_twice)])
    return doubled


def largest_fitting(
    sizes: Sequence[int], fits: Callable[[int], bool], guess: int | None = None
) -> int | None:
    """The largest of ascending `sizes` that fits; None where none does.

    Where a size fits, every smaller one must, too. Starts at the `guess` and moves up or down in
    growing steps, or starts at the smallest size and doubles it; then bisects what is left. It
    never starts at the largest size, whose failure takes longest.
    """
    low = -1  # the largest index that fits
    high = len(sizes)  # the smallest index that does not
    index = 0 if guess is None else max(0, bisect_right(sizes, guess) - 1)
    stride = 1
    while low + 1 < high:
        if fits(sizes[index]):
            low = index
        else:
            high = index
        nothing_failed = high == len(sizes)
        nothing_fitted = low == -1
        if nothing_failed and guess is None:
            at_most_twice = bisect_right(sizes, 2 * sizes[low]) - 1
            index = min(max(at_most_twice, low + 1), high - 1)
        elif nothing_failed:
            index = min(low + stride, high - 1)
        elif nothing_fitted:
            index = max(0, high - stride)
        else:
            index = (low + high) // 2
        stride *= 2
    return sizes[low] if low >= 0 else None


def all_fitting(
    sizes: Sequence[int], fits: Callable[[int], bool], guess: int | None = None
) -> list[int]:
    """Those of ascending `sizes` that fit; the last may fit though a smaller one does not.

    The last is a rank's full share in one micro-step: a lone rank then keeps no gradients between
    micro-steps. So it is tried separately, unless the `guess` says that it does not fit.
    """
    *several, full_share = sizes
    is_likely = guess is None or guess >= full_share
    largest = largest_fitting(several, fits, guess)
    fitting = [size for size in several if largest is not None and size <= largest]
    if (is_likely or fitting == several) and fits(full_share):
        fitting.append(full_share)
    return fitting


def smallest_fast(throughput: Mapping[int, float]) -> int:
    """Of {size: samples per second}: the smallest size within SLACK of the best."""
    enough = (1 - SLACK) * max(throughput.values())
    return min(size for size, speed in throughput.items() if speed >= enough)


def measured_down(sizes: Sequence[int], measure: Callable[[int], float]) -> dict[int, float]:
    """{size: samples per second} from the largest size down until two in a row are too slow."""
    throughput: dict[int, float] = {}
    slow_in_a_row = 0
    for size in reversed(sizes):
        throughput[size] = measure(size)
        if throughput[size] < (1 - SLACK) * max(throughput.values()):
            slow_in_a_row += 1
        else:
            slow_in_a_row = 0
        if slow_in_a_row == 2:
            break
    return throughput
