"""Where samples come from, and which of them are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from train.batch import sample_ids
from train.config import Config, resolve_source
from train.config.schema import Data
from train.data.parts import DataError, TrainingSet
from train.data.rows import Rows, preload
from train.data.stream import Stream

HOLDOUT_SEED = 0  # not the run's: runs with different seeds are compared on the same held-out samples


@dataclass(frozen=True)
class Sets:
    train: TrainingSet
    evaluation: dict[str, Rows]  # the main set has the name ""


def open_sets(config: Config, needed: Sequence[str]) -> Sets:
    """Load the training and evaluation samples, with the columns that the task needs under the task's own names.

    Raises DataError, also where a file is missing or damaged: the libraries do not always name it.
    """
    try:
        return _open_sets(config, needed)
    except (OSError, pa.ArrowException, DatasetGenerationError) as error:
        args = config.data.args
        files = args.get("data_files") or args.get("data_dir") or ""
        raise DataError(f"could not read {config.data.source} {files}: {type(error).__name__}: {error}") from error


def _open_sets(config: Config, needed: Sequence[str]) -> Sets:
    data = config.data
    dataset = _load(data, data.split, data.streaming)
    held_out: dict[str, Dataset] = {}
    if data.eval_split is not None:
        held_out[""] = _load(data, data.eval_split)
    elif data.eval_fraction and isinstance(dataset, IterableDataset):
        raise DataError(
            f"data.eval_fraction={data.eval_fraction} of a stream of unknown length. Type: data.eval_split=test"
        )
    elif data.eval_fraction:
        dataset, held_out[""] = _hold_out(dataset, data.eval_fraction)
    for name, split in config.evaluate.sets.items():
        held_out[name] = _load(data, split)
    rows = {name: _select(held, data.columns, needed) for name, held in held_out.items()}
    return Sets(_training_set(dataset, data, needed), rows)


def _training_set(dataset: Dataset | IterableDataset, data: Data, needed: Sequence[str]) -> TrainingSet:
    if isinstance(dataset, Dataset):
        if not data.streaming:
            return _select(dataset, data.columns, needed)
        dataset = dataset.to_iterable_dataset()
    # Streams that name no columns are asked for those of their first sample.
    known = dataset.column_names or list(next(iter(dataset), {}))
    return Stream(dataset, _columns(known, data.columns, needed), data.shuffle_buffer, data.split_by_node)


def _load(data: Data, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """One split of the source. A function gives one data set, its split `train`, or several by name."""
    function = resolve_source(data.source)
    if function is None:
        return load_dataset(data.source, split=split, streaming=streaming, **data.args)
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


def _columns(known: Sequence[str], given: Mapping[str, str], needed: Sequence[str]) -> dict[str, str]:
    """{name that the task asks for: name in the data}."""
    names = {name: given.get(name, name) for name in needed}
    missing = {name: column for name, column in names.items() if column not in known}
    if missing:
        wanted = ", ".join(f"{name} (as column {column!r})" for name, column in missing.items())
        example = ", ".join(f"{name}: {known[0] if known else 'NAME'}" for name in missing)
        raise DataError(
            f"the task needs {wanted}; the data has the columns {', '.join(known)}. "
            f"Say which column is what: 'data.columns={{{example}}}'"
        )
    return names


def _select(dataset: Dataset | IterableDataset, given: Mapping[str, str], needed: Sequence[str]) -> Rows:
    if isinstance(dataset, IterableDataset):  # held out: it is evaluated again and again
        dataset = Dataset.from_list(list(dataset))
    names = _columns(dataset.column_names, given, needed)
    if len(dataset) == 0:
        raise DataError("a set of the data is empty. Look at data.split, data.eval_split and evaluate.sets")
    rows = preload(dataset, list(dict.fromkeys(names.values())))
    return Rows({name: rows.columns[column] for name, column in names.items()})
