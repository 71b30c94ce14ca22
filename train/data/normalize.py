"""data.normalize: inputs are scaled by numbers that are computed once, before the first step."""

from collections.abc import Callable
from dataclasses import replace

from train.config import Config
from train.data.scales import Fitted, fit, input_names
from train.data.sources import Datasets

Broadcast = Callable[[Callable[[], Fitted]], Fitted]
"""Calls a function on one rank, and gives its result to all."""


def on_this_rank(compute: Callable[[], Fitted]) -> Fitted:
    return compute()


def normalized(sets: Datasets, config: Config, broadcast: Broadcast = on_this_rank) -> Datasets:
    """With the numbers by which inputs are scaled, if data.normalize is set. Raises DataError."""
    if not config.data.normalize:
        return sets
    names = input_names(config.data)
    # On one rank, for all: each scales by the same numbers, and the rows are read once.
    fitted = broadcast(lambda: fit(sets.train, names))
    return replace(sets, fitted=fitted, notes=(*sets.notes, *fitted.lines(names)))
