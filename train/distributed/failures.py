"""An error of one rank in its part of a gradient, agreed on before the reduction.

In the reduction the others would wait for it.
"""

import sys
from collections.abc import Sequence

from train.distributed.ranks import Ranks
from train.errors import RankFailed, ShortOfMemory, is_out_of_memory


def agree(ranks: Ranks, error: Exception | None, values: Sequence[float] = ()) -> list[float]:
    """The sums of `values` over the ranks, by one message; raises on all where one has an `error`.

    ShortOfMemory where all that failed have run out of memory. Else a rank that failed raises its
    own error and the others RankFailed. It prints the error, since only the first rank of a machine
    prints how a run ended.
    """
    if ranks.world_size == 1:
        if error is not None:
            raise error
        return list(values)
    number = 0
    if error is not None:
        number = ranks.rank + 1  # where one rank failed, the sum says which
    # One message for all: how many ranks failed, how many of those ran out of memory, the sum of
    # the numbers of those that failed, and the values.
    try:
        failed, short, numbers, *sums = ranks.sum(
            [error is not None, is_out_of_memory(error), number, *values]
        )
    except RuntimeError:
        # Another rank is gone already: this rank ends by its own error.
        if error is not None:
            raise error from None
        raise
    if not failed:
        return sums
    if failed == 1:
        who = f"rank {numbers - 1:.0f}"
    else:
        who = f"{failed:.0f} ranks"
    # One kind of error on all ranks: either all do the step again in smaller micro-batches, or
    # none.
    if short == failed:
        raise ShortOfMemory(f"{who} ran out of memory") from error
    if error is not None:
        print(f"rank {ranks.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise error
    raise RankFailed(f"{who} could not compute its part of the gradient: see its own error")
