"""Of values that each rank measures for itself, the largest over the ranks, by one message."""

from collections.abc import Callable, Mapping, Sequence

from train import metric_names
from train.distributed.ranks import Ranks
from train.parts import Metrics

WITH_SMALLEST = (metric_names.PEAK_ALLOCATED, metric_names.PEAK_RSS)
"""Metrics of which the smallest value is logged too; a run has one of them."""


def largest(ranks: Ranks) -> Callable[[Metrics], Metrics]:
    """All ranks call it together."""

    def of_all(metrics: Metrics) -> Metrics:
        return over_ranks(ranks.gather(dict(metrics)))

    return of_all


def over_ranks(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each value, and the smallest of the peak.

    A value that one of the ranks does not have is absent.
    """
    metrics = {}
    for name in by_rank[0]:
        if all(name in values for values in by_rank):
            metrics[name] = max(values[name] for values in by_rank)
    if len(by_rank) > 1:
        for name in WITH_SMALLEST:
            if name in metrics:
                metrics[metric_names.SMALLEST_PEAK] = min(values[name] for values in by_rank)
    return metrics
