"""Where samples come from, and which of them are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, load_dataset

from train.batch import sample_ids
from train.config import Config, resolve_source
from train.config.schema import Data
from train.data.packing import pack
from train.data.rows import DataError, Rows, preload

HOLDOUT_SEED = 0  # not the run's: runs with different seeds are compared on the same held-out samples


@dataclass(frozen=True)
class Sets:
    train: Rows
    evaluation: dict[str, Rows]  # the main set has the name ""


def open_sets(config: Config, needed: Sequence[str]) -> Sets:
    """Load the training and evaluation samples, with the columns that the task needs under the task's own names."""
    data = config.data
    dataset = _load(data, data.split)
    held_out: dict[str, Dataset] = {}
    if data.eval_split is not None:
        held_out[""] = _load(data, data.eval_split)
    elif data.eval_fraction:
        dataset, held_out[""] = _hold_out(dataset, data.eval_fraction)
    for name, split in config.evaluate.sets.items():
        held_out[name] = _load(data, split)
    rows = {name: _rows(held, data, needed) for name, held in held_out.items()}
    return Sets(_rows(dataset, data, needed), rows)


def _rows(dataset: Dataset, data: Data, needed: Sequence[str]) -> Rows:
    return pack(dataset, data, needed) if data.block_size else _select(dataset, data.columns, needed)


def _load(data: Data, split: str) -> Dataset:
    """One split of the source. A function gives one data set, its split `train`, or several by name."""
    function = resolve_source(data.source)
    if function is None:
        return load_dataset(data.source, split=split, **data.args)
    found = function(**data.args)
    splits = found if isinstance(found, Mapping) else {"train": found}
    if split not in splits:
        raise DataError(f"{data.source} has no split {split!r}; it has: {', '.join(splits)}")
    return splits[split]


def _hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    size = len(dataset)
    count = round(size * fraction)
    if count in (0, size):
        kept = "nothing" if count == 0 else "everything"
        raise DataError(
            f"data.eval_fraction={fraction} of {size} samples holds out {kept}. Type: data.eval_fraction=0.1"
        )
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
    if len(dataset) == 0:
        raise DataError("a set of the data is empty. Look at data.split, data.eval_split and evaluate.sets")

    rows = preload(dataset, list(dict.fromkeys(names.values())))
    return Rows({name: rows.columns[column] for name, column in names.items()})
