"""Of values that each rank has for itself, the largest over the ranks: by one message for all of
them.
"""

from collections.abc import Callable, Mapping, Sequence

from train import metric_names
from train.distributed.ranks import Ranks
from train.parts import Metrics


def largest(ranks: Ranks) -> Callable[[Metrics], Metrics]:
    """All ranks call it together."""

    def of_all(own: Metrics) -> Metrics:
        return over_ranks(ranks.gather(dict(own)))

    return of_all


def over_ranks(of_ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each value, and the smallest of the peak; one that a rank does not know is
    left out.
    """
    known = [name for name in of_ranks[0] if all(name in of_rank for of_rank in of_ranks)]
    found = {name: max(of_rank[name] for of_rank in of_ranks) for name in known}
    for name in (
        {metric_names.PEAK_ALLOCATED, metric_names.PEAK_RSS} & found.keys()
        if len(of_ranks) > 1
        else ()
    ):
        found[metric_names.SMALLEST_PEAK] = min(of_rank[name] for of_rank in of_ranks)
    return found
