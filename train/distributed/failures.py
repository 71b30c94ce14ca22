"""What keeps a rank from its part of a gradient: told to all before the reduction, in which they
would wait for it.
"""

import sys
from collections.abc import Sequence

from train.distributed.ranks import Ranks
from train.errors import RankFailed, ShortOfMemory, is_out_of_memory


def agree(ranks: Ranks, error: Exception | None, values: Sequence[float] = ()) -> list[float]:
    """The sums of `values` over the ranks, by one message; an error on all ranks where one of them
    comes with one.

    ShortOfMemory where all that come with an error have run out of memory. Else their own error,
    which is printed, since the first rank of a machine, which speaks for all, does not know it; and
    RankFailed on the others.
    """
    if ranks.world_size == 1:
        if error is not None:
            raise error
        return list(values)
    number = ranks.rank + 1 if error is not None else 0
    try:
        failed, short, numbers, *sums = ranks.sum(
            [error is not None, is_out_of_memory(error), number, *values]
        )
    except RuntimeError:
        # one of the others is gone already: this one's own error is what ends it
        if error is not None:
            raise error from None
        raise
    if not failed:
        return sums
    who = f"rank {numbers - 1:.0f}" if failed == 1 else f"{failed:.0f} ranks"
    if short == failed:
        raise ShortOfMemory(f"{who} ran out of memory") from error
    if error is not None:
        print(f"rank {ranks.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise error
    raise RankFailed(f"{who} could not compute its part of the gradient: see its own error")
