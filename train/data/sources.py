"""Which samples are trained on, which are held out, and how they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil
import pyarrow as pa
from datasets import Dataset, Image, IterableDataset

from train.batch.order import Ids
from train.batch.window import Batch
from train.config import Config, resolve, resolve_source
from train.data.by_length import ByLength, Padding, cut_by_length
from train.data.checks import LabelRange, check_values, class_line, class_names, label_range
from train.data.choosing import HOLDOUT_SEED, chosen_columns, hold_out
from train.data.files import Readable, explain
from train.data.image_reading import check_form
from train.data.loader import Loader, Transform
from train.data.misread import advised
from train.data.packed_stream import PackedStream
from train.data.packing import check_columns, make_tokenizer, pack
from train.data.reading import INPUTS, LABELS, Reader, is_text_value
from train.data.rows import Rows, Table, preload
from train.data.scales import Fitted, far_apart, input_names
from train.data.shares import DataError, EvaluationSet, TrainingSet
from train.data.splits import Splits, load_splits, whole
from train.data.stream import Stream
from train.data.tokenizers import Bytes, Saved
from train.distributed.ranks import launched_local_world_size
from train.randomness import DATA_SEED, drawn_from

SHARE = 0.25
"""Of a machine's memory: what its ranks may fill with samples."""


@dataclass(frozen=True)
class Datasets:
    train: TrainingSet
    evaluation: dict[str, EvaluationSet]  # the main set has the name ""
    # names, in the order of their numbers
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: tuple[LabelRange, ...] = ()
    notes: tuple[str, ...] = ()  # for the screen
    padding: Padding | None = None  # what micro-batches are cut to get rid of (batch.micro_tokens)
    digests: Mapping[str, str] = field(default_factory=dict)  # what the data of each split is
    fitted: Fitted | None = None  # by which inputs are scaled (data.normalize)

    def trial(self, seed: int, count: int) -> Batch:
        """A few samples to try things on, uncut: the first ones, and where texts are cut, the
        shortest of all.
        """
        return (self.train.trial if isinstance(self.train, ByLength) else self.train.first)(
            seed, count
        )


def open_datasets(config: Config, needed: Sequence[str], splits: Splits | None = None) -> Datasets:
    """The training and evaluation samples, with the columns that the task needs under the task's
    own names.

    Raises DataError for columns that are missing, and for values that cannot be trained on.
    """
    splits = splits or load_splits(config, needed)
    opened = _packed if config.data.block_size is not None else _opened
    files, asked = (
        (splits.source.files, splits.source.asked) if splits.source is not None else (None, {})
    )
    with drawn_from(DATA_SEED), advised(files, asked):
        return replace(opened(config, needed, splits), digests=splits.digests)


def _explained(splits: Splits, config: Config) -> Callable[[Exception], Exception]:
    """What a stream says of what cannot be read."""
    source = splits.source
    assert source is not None
    return lambda error: explain(source, config.data.split, error)


def _names_of(train: Readable, explained: Callable[[Exception], Exception]) -> list[str]:
    try:
        return train.column_names or list(next(iter(train), {}))
    except Exception as error:
        raise explained(error) from error


def _opened(config: Config, needed: Sequence[str], splits: Splits) -> Datasets:
    data = config.data
    train = _training(config, splits)
    # Streams that name no columns are asked for those of their first sample.
    texts = [name for name, kind in (train.features or {}).items() if is_text_value(kind)]
    columns = chosen_columns(
        _names_of(train, _explained(splits, config)), data.columns, needed, texts
    )
    names = class_names(_arrow(train), train.features, columns.get(LABELS))
    tokenizer = make_tokenizer(data)
    if data.max_length is not None and not isinstance(tokenizer, Bytes | Saved):
        raise DataError(
            f"data.max_length fills up texts, and data.tokenizer={data.tokenizer} does not say by "
            "which token. Type: data.tokenizer=bytes, or the folder of a tokenizer that "
            "transformers has saved"
        )
    saved = tokenizer if isinstance(tokenizer, Saved) else None
    classes = {LABELS: names} if names else {}
    reader = Reader(columns, classes, data.max_length, saved, splits.texts, data.image)
    check_form(data.image, train.features, reader.names)
    opening = _Opening(config, reader, _explained(splits, config))
    held_out = {name: opening.checked(dataset, name) for name, dataset in splits.held_out.items()}
    evaluation: dict[str, EvaluationSet] = {}
    kept = None
    if data.eval_split is not None:
        evaluation[""] = opening.evaluation(held_out[data.eval_split])
    if isinstance(train, Dataset):
        train = opening.checked(train, data.split)
        if data.eval_split is None and data.eval_fraction:
            kept, held = hold_out(len(train), data.eval_fraction)
            evaluation[""] = opening.evaluation(train, held)
    evaluation |= {
        name: opening.evaluation(held_out[split]) for name, split in config.evaluate.sets.items()
    }
    samples = opening.training(train, kept)
    whole = {data.split: train, **held_out}
    ranges = (label_range(_arrow(rows), opening.reader, split) for split, rows in whole.items())
    labels = tuple(found for found in ranges if found is not None)
    notes, padding = splits.notes + tuple(opening.notes(samples)), None
    if config.batch.micro_tokens is not None:
        types = train.features.arrow_schema if isinstance(train, Dataset) else None
        limit = config.batch.micro_tokens
        samples, evaluation, padding = cut_by_length(
            samples, evaluation, opening.reader, types, limit
        )
    return Datasets(samples, evaluation, opening.reader.classes, labels, notes, padding)


def _packed(config: Config, needed: Sequence[str], splits: Splits) -> Datasets:
    """Texts as blocks of tokens; documents are held out, not blocks."""
    data, train = config.data, _training(config, splits)
    column = data.columns.get("text", "text")
    of_split = {split: whole(texts) for split, texts in splits.held_out.items()}
    held_out = {name: of_split[split] for name, split in config.evaluate.sets.items()}
    if data.eval_split is not None:
        held_out[""] = of_split[data.eval_split]
    elif data.eval_fraction and isinstance(train, Dataset):
        kept, held = hold_out(len(train), data.eval_fraction)
        train, held_out[""] = train.select(kept), train.select(held)
    evaluation: dict[str, EvaluationSet] = {
        name: pack(held_out[name], data, needed) for name in sorted(held_out)
    }
    notes = splits.notes
    if data.preload is False and (held_out or isinstance(train, Dataset)):
        notes += ("loading   blocks are held in memory, whatever data.preload says",)
    if isinstance(train, Dataset):
        return Datasets(pack(train, data, needed), evaluation, notes=notes)
    check_columns(_names_of(train, _explained(splits, config)), column, needed)
    assert data.block_size is not None
    tokenizer = make_tokenizer(data)
    cut = PackedStream(
        dataset=train,
        reader=Reader({"text": column}),
        shuffle_buffer=data.shuffle_buffer,
        by_rank=data.split_by_node,
        explain=_explained(splits, config),
        by_user_code=resolve_source(data.source) is not None
        or not isinstance(tokenizer, Bytes | Saved),
        tokenizer=tokenizer,
        block_size=data.block_size,
        needed=needed,
    )
    return Datasets(cut, evaluation, notes=notes)


def _training(config: Config, splits: Splits) -> Readable:
    """A stream where the config asks for one; none of it can be held out."""
    data, train = config.data, splits.train
    if data.streaming and isinstance(train, Dataset):
        train = train.to_iterable_dataset()
    if isinstance(train, IterableDataset) and data.eval_fraction and data.eval_split is None:
        raise DataError(
            f"data.eval_fraction={data.eval_fraction} of a stream of unknown length. Type: "
            "data.eval_split=test"
        )
    return train


@dataclass(frozen=True)
class _Opening:
    """How the samples of a run are read."""

    config: Config
    reader: Reader
    explain: Callable[[Exception], Exception]

    def checked(self, dataset: Readable, split: str) -> Dataset:
        dataset = whole(dataset)
        chosen_columns(dataset.column_names, self.config.data.columns, list(self.reader.columns))
        if len(dataset) == 0:
            raise DataError(
                "a set of the data is empty. Look at data.split, data.eval_split and evaluate.sets"
            )
        check_values(_arrow(dataset.select_columns(self.reader.names)), self.reader, split)
        return dataset

    def training(self, dataset: Readable, rows: Ids | None) -> TrainingSet:
        data = self.config.data
        transform = resolve(data.transform, "train.data") if data.transform else None
        if isinstance(dataset, IterableDataset):
            return Stream(
                dataset=dataset,
                reader=self.reader,
                shuffle_buffer=data.shuffle_buffer,
                by_rank=data.split_by_node,
                explain=self.explain,
                by_user_code=resolve_source(data.source) is not None,
            )
        return self._with(
            self._samples(dataset, rows, transform is not None), transform, self.config.seed
        )

    def evaluation(self, dataset: Dataset, rows: Ids | None = None) -> EvaluationSet:
        name = self.config.data.eval_transform
        transform = resolve(name, "train.data") if name else None
        return self._with(
            self._samples(dataset, rows, transform is not None), transform, HOLDOUT_SEED
        )

    def _with(self, samples: Rows | Table, transform: Transform | None, seed: int) -> Rows | Loader:
        if isinstance(samples, Rows) and transform is None:
            return samples
        # before the other ranks give up waiting for this one
        timeout = self.config.runtime.timeout_seconds / 2
        return Loader(samples, transform, seed, self.config.data.workers, timeout)

    def _samples(self, dataset: Dataset, rows: Ids | None, transformed: bool) -> Rows | Table:
        """`rows`: which of the data set; None: all."""
        own = {
            name: column for name, column in self.reader.columns.items() if isinstance(column, str)
        }
        images = frozenset(
            name for name, column in own.items() if isinstance(dataset.features[column], Image)
        )
        places = np.arange(len(dataset)) if rows is None else rows
        chosen = (dataset if rows is None else dataset.select(rows)).select_columns(
            self.reader.names
        )
        chosen = chosen.with_format("arrow")
        wanted = self.config.data.preload
        if wanted is None:
            wanted = not (images and transformed) and self.bytes_of(chosen) <= memory_of_a_rank()
        return (preload if wanted else Table)(chosen, self.reader, images, places)

    def bytes_of(self, dataset: Dataset) -> int:
        """In memory: as many times that of the first sample as there are samples."""
        first = self.reader.read(dataset[:1], dataset.features, range(1))
        return len(dataset) * sum(tensor.nbytes for column in first.values() for tensor in column)

    def notes(self, samples: TrainingSet) -> Iterator[str]:
        """What the screen says of the samples that are trained on."""
        yield from (class_line(name, classes) for name, classes in self.reader.classes.items())
        if not self.config.data.normalize and INPUTS in self.reader.columns:
            yield from far_apart(samples, input_names(self.config.data))
        if not isinstance(samples, Loader):
            return
        data, table = self.config.data, samples.samples
        held = "from memory" if isinstance(table, Rows) else "from the disk"
        why = f"data.transform={data.transform}"
        if isinstance(table, Table) and data.preload is False:
            why = "data.preload=false"
        elif isinstance(table, Table) and not (table.images and data.transform):
            size, limit = self.bytes_of(table.dataset) / 2**30, memory_of_a_rank() / 2**30
            why = (
                f"about {size:.3g} GiB, over the {limit:.3g} GiB that a rank may fill: "
                f"{SHARE:.0%} of the machine's"
            )
        workers = (
            f"{data.workers} worker{'s' * (data.workers != 1)}" if data.workers else "no workers"
        )
        yield f"loading   {held}, as needed, by {workers} per rank ({why})"


def _arrow(dataset: Readable) -> pa.Table | None:
    """All of it, where it lies: nothing is copied. A stream's: nobody has it."""
    return None if isinstance(dataset, IterableDataset) else dataset.with_format("arrow")[:]


def memory_of_a_rank() -> float:
    """Bytes that one rank may fill with samples."""
    return SHARE * psutil.virtual_memory().total / launched_local_world_size()
