"""How large the numbers of `inputs` are, over the rows that are trained on (data.normalize)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.batch.order import Ids
from train.config.recipe import Data
from train.data.columns import as_list
from train.data.loader import Loader
from train.data.protocols import TrainingSet
from train.data.reading import INPUTS, SHOWN, mask_of
from train.data.rows import Rows, Table
from train.data.shares import DataError
from train.errors import some

BLOCK = 10_000  # rows at a time
LARGEST_RATIO = 100
"""How many times larger one column may be than another without a warning."""


@dataclass(frozen=True)
class Fitted:
    """Of each number of a sample, in float64."""

    mean: Tensor
    deviation: Tensor  # the root of the mean square; 1 where all rows hold the same
    rows: int

    def lines(self, names: Sequence[str]) -> list[str]:
        """For the screen; `names`: of the columns side by side, or of the only one."""
        rows = f"of {self.rows:,} rows that are trained on"
        if self.mean.dim() == 1 and len(names) == len(self.mean):
            columns = zip(names, self.mean.tolist(), self.deviation.tolist(), strict=True)
            each = [f"{name} {mean:.6g} +- {deviation:.6g}" for name, mean, deviation in columns]
            return [f"normalize mean +- deviation {rows}: {some(each, SHOWN)}"]
        count = self.mean.numel()
        what = f"{names[0]!r}"
        if count > 1:
            what = f"each of the {count} numbers of {what}"
        means = f"means {self.mean.min():.6g} to {self.mean.max():.6g}"
        deviations = f"deviations {self.deviation.min():.6g} to {self.deviation.max():.6g}"
        return [f"normalize {what}, by its mean and deviation {rows}: {means}, {deviations}"]


def input_names(data: Data) -> list[str]:
    """The columns of the data that are the inputs."""
    return as_list(data.columns.get(INPUTS, INPUTS))


def fit(train: TrainingSet, names: Sequence[str]) -> Fitted:
    """Raises DataError where `inputs` holds no numbers, or where the rows come as a stream."""
    samples = train.samples if isinstance(train, Loader) else train
    if not isinstance(samples, Rows | Table):
        raise DataError(
            "data.normalize needs all rows before the first step, and here they come as a stream, "
            "or by length. Set: data.normalize=false, or data.streaming=false"
        )
    _check(samples, names)
    size = len(samples)
    blocks = [np.arange(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]

    def mean_of(values: Callable[[Tensor], Tensor]) -> Tensor:
        # By block: all rows in float64 may not fit in memory.
        parts = [values(_numbers(samples, ids)).sum(0) for ids in blocks]
        return torch.stack(parts).sum(0) / size

    # In two passes: the mean of squares less the square of the mean would cancel for columns far
    # from 0.
    mean = mean_of(lambda rows: rows)
    deviation = mean_of(lambda rows: (rows - mean).square()).sqrt()
    # The computed deviation of a column of one value may be that of rounding.
    first = _numbers(samples, np.arange(1))
    # It is divided by 1: 0 / 0 would be NaN.
    is_one_value = mean_of(lambda rows: (rows != first).double()) == 0
    return Fitted(mean, torch.where(is_one_value, 1.0, deviation), size)


def _check(samples: Rows | Table, names: Sequence[str]) -> None:
    first = samples.pick(np.arange(1))
    if INPUTS not in first:
        raise DataError(
            "data.normalize scales the column that the task calls inputs; this task has "
            f"{', '.join(first)}. Set: data.normalize=false"
        )
    if INPUTS in samples.images:
        image = first[INPUTS][0]
        half = [0.5]
        if image.ndim > 2:  # a number for each channel
            half *= image.shape[0]
        raise DataError(
            f"data.normalize is for numbers, and column {names[0]!r} holds images. Set: "
            f"data.normalize=false 'data.image={{mean: {half}, std: {half}}}'"
        )
    if mask_of(INPUTS) in first:
        raise DataError(
            f"data.normalize is for numbers, and column {names[0]!r} holds text. Set: "
            "data.normalize=false"
        )


def _numbers(samples: Rows | Table, ids: Ids) -> Tensor:
    column = samples.pick(ids)[INPUTS]
    assert isinstance(column, Tensor)  # images alone are lists
    return column.double()


def warn_of_scales(train: TrainingSet, names: Sequence[str]) -> list[str]:
    """A line for the screen where columns that are read side by side differ much in size.

    Looks at BLOCK rows at most, from all over the set.
    """
    samples: object = train
    if isinstance(train, Loader) and train.transform is None:
        samples = train.samples
    if not isinstance(samples, Rows | Table) or len(names) < 2:
        return []
    # Evenly from all over the set, since rows are often in some order.
    rows = np.linspace(0, len(samples) - 1, min(BLOCK, len(samples))).astype(np.int64)
    sizes = _numbers(samples, rows).square().mean(0).sqrt()
    # A column of zeros is of no size.
    by_size = [(size, name) for size, name in zip(sizes.tolist(), names, strict=True) if size]
    if not by_size:
        return []
    smallest, small = min(by_size)
    largest, large = max(by_size)
    if largest <= LARGEST_RATIO * smallest:
        return []
    return [
        f"warning   columns differ in scale: {large} is of about {largest:.3g}, {small} of about "
        f"{smallest:.3g}, and a model learns from large ones first. Set: data.normalize=true"
    ]
