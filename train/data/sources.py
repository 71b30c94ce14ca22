"""Where samples come from, and which of them are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, load_dataset

from train.batch import sample_ids
from train.config import resolve_source
from train.config.schema import Data
from train.data.rows import DataError, Rows, preload

HOLDOUT_SEED = 0  # not the run's: runs with different seeds are compared on the same held-out samples


@dataclass(frozen=True)
class Sets:
    train: Rows
    evaluation: Rows | None


def open_sets(data: Data, needed: Sequence[str]) -> Sets:
    """Load the training and evaluation samples, with the columns that the task needs under the task's own names."""
    dataset = _load(data, data.split)
    if data.eval_split is not None:
        held_out: Dataset | None = _load(data, data.eval_split)
    else:
        dataset, held_out = _hold_out(dataset, data.eval_fraction)
    train = _select(dataset, data.columns, needed)
    return Sets(train, None if held_out is None else _select(held_out, data.columns, needed))


def _load(data: Data, split: str) -> Dataset:
    built_in = resolve_source(data.source)
    return built_in(**data.args) if built_in else load_dataset(data.source, split=split, **data.args)


def _hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset | None]:
    size = len(dataset)
    count = round(size * fraction)
    if count == 0:
        return dataset, None
    order = sample_ids(size, HOLDOUT_SEED, 0, 0, size)
    return dataset.select(np.sort(order[count:])), dataset.select(np.sort(order[:count]))


def _select(dataset: Dataset, given: Mapping[str, str], needed: Sequence[str]) -> Rows:
    names = {name: given.get(name, name) for name in needed}
    missing = {name: column for name, column in names.items() if column not in dataset.column_names}
    if missing:
        wanted = ", ".join(f"{name} (as column {column!r})" for name, column in missing.items())
        example = ", ".join(f"{name}: {dataset.column_names[0]}" for name in missing)
        raise DataError(
            f"the task needs {wanted}; the data has the columns {', '.join(dataset.column_names)}. "
            f"Say which column is what: 'data.columns={{{example}}}'"
        )
    rows = preload(dataset, list(dict.fromkeys(names.values())))
    return Rows({name: rows.columns[column] for name, column in names.items()})
