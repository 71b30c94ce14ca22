"""data.normalize: the inputs of a run are scaled by numbers that are found once, before the first
step.
"""

from collections.abc import Callable
from dataclasses import replace

from train.config import Config
from train.data.scales import Fitted, fit, input_names
from train.data.sources import Datasets

Decide = Callable[[Callable[[], Fitted]], Fitted]
"""Calls what it is given, on one rank or on this one."""


def here(find: Callable[[], Fitted]) -> Fitted:
    return find()


def normalized(sets: Datasets, config: Config, decide: Decide = here) -> Datasets:
    """With the numbers by which inputs are scaled, where data.normalize asks for them. Raises
    DataError.
    """
    if not config.data.normalize:
        return sets
    names = input_names(config.data)
    fitted = decide(lambda: fit(sets.train, names))
    return replace(sets, fitted=fitted, notes=(*sets.notes, *fitted.lines(names)))
