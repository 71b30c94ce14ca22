"""Which rows of the training split are held out for evaluation (data.eval_fraction)."""

from dataclasses import dataclass

import numpy as np

from train.batch import sample_ids
from train.batch.order import Ids
from train.data.shares import DataError
from train.errors import counted

# Not the run's seed: runs with different seeds are compared on the same held-out samples.
HOLDOUT_SEED = 0


@dataclass(frozen=True)
class Holdout:
    """Row numbers of the training split, ascending."""

    train: Ids
    held_out: Ids


def hold_out(size: int, fraction: float) -> Holdout:
    """Draw the rows to hold out. Raises DataError where that would be none of them, or all."""
    count = round(size * fraction)
    if count in (0, size):
        raise _too_few(size, fraction, count)
    order = sample_ids(size, HOLDOUT_SEED, 0, 0, size)
    return Holdout(train=np.sort(order[count:]), held_out=np.sort(order[:count]))


def _too_few(size: int, fraction: float, count: int) -> DataError:
    amount = "nothing" if count == 0 else "everything"
    if size == 0:
        fix = "The data set is empty: look at data.split"
    elif size == 1:
        fix = "One sample cannot be split. Set: data.eval_fraction=0"
    else:
        fix = f"Set: data.eval_fraction={1 / size:.2g}"
    return DataError(
        f"data.eval_fraction={fraction} of {counted(size, 'sample')} holds out {amount}. {fix}"
    )
