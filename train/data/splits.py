"""The data sets that a config names, with tokens in place of texts: what takes long, and is found
in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset, IterableDataset, concatenate_datasets, disable_progress_bars

from train.config import Config
from train.config.recipe import Data
from train.data.checks import check_values
from train.data.choosing import asked_columns, check_names, chosen_columns
from train.data.files import Readable, Source, explain
from train.data.misread import advised
from train.data.packing import check_columns, check_text, make_tokenizer
from train.data.reading import LABELS, Columns, Reader, is_text
from train.data.tokenizers import Saved
from train.data.tokens import LOSSY, Tokenising, identify
from train.data.values import as_meant
from train.distributed.ranks import launched_rank
from train.randomness import DATA_SEED, drawn_from


@dataclass(frozen=True)
class Splits:
    """Before samples are held out, and columns read."""

    train: Readable
    held_out: Mapping[str, Readable]  # by split
    texts: frozenset[str] = frozenset()  # columns of the data that hold tokens, except in a stream
    notes: tuple[str, ...] = ()  # for the screen
    digests: Mapping[str, str] = field(default_factory=dict)  # what the data of each split is
    source: Source | None = None


def load_splits(config: Config, needed: Sequence[str]) -> Splits:
    """Downloads, makes tokens, and fills the cache of `datasets`; `needed` are the columns of the
    task.

    Raises DataError where a source cannot be read, or a text is no text.
    """
    if launched_rank():
        disable_progress_bars()  # the others wait for rank 0
    with drawn_from(DATA_SEED):
        return _load_splits(config, needed)


def _load_splits(config: Config, needed: Sequence[str]) -> Splits:
    data = config.data
    source = Source(
        data, asked_columns(data.columns, needed if data.block_size is None else ("text",))
    )

    def read(split: str, streaming: bool = False) -> Readable:
        rows = source.split(split, streaming)
        try:
            return as_meant(rows, source.columns, data.fill)
        except Exception as error:
            raise explain(source, split, error) from error

    train = read(data.split, data.streaming)
    held_out: dict[str, Readable] = {}
    digests = {data.split: source.digest(data.split, train)}
    for name in dict.fromkeys(filter(None, [data.eval_split, *config.evaluate.sets.values()])):
        # What is evaluated again and again is not a stream.
        is_read = name == data.split and not data.streaming
        held_out[name] = train if is_read else read(name)
        if name not in digests:
            digests[name] = source.digest(name, held_out[name])
    splits = Splits(train, held_out, notes=source.notes, digests=digests, source=source)
    with advised(source.files, source.asked):
        if data.block_size is not None:
            return _documents(splits, data, needed)
        return splits if data.max_length is None else _texts(splits, data, needed)


def whole(dataset: Readable) -> Dataset:
    """All of it, also of what comes as a stream."""
    if isinstance(dataset, IterableDataset):
        return Dataset.from_list(list(dataset), features=dataset.features)
    return dataset


def _documents(splits: Splits, data: Data, needed: Sequence[str]) -> Splits:
    """The column of texts alone, as tokens, to be cut into blocks."""
    check_names(data.columns, ("text",))
    column = data.columns.get("text", "text")
    tokenizer = make_tokenizer(data)
    how = Tokenising(column, tokenizer, identify(data.tokenizer, tokenizer))

    def made(texts: Dataset, split: str) -> Dataset:
        check_columns(texts.column_names, column, needed)
        _check(texts, column, split)
        check_text(column, texts.features.arrow_schema.field(column).type)
        return how.of(texts)

    return replace(_each(splits, data, made), notes=(*splits.notes, how.note(data.tokenizer)))


def _texts(splits: Splits, data: Data, needed: Sequence[str]) -> Splits:
    """Columns of text as data.max_length tokens of a saved tokenizer; texts that are their bytes
    are cut when read.
    """
    tokenizer = make_tokenizer(data)
    if not isinstance(tokenizer, Saved):
        return splits
    identity = identify(data.tokenizer, tokenizer)
    found: dict[str, Tokenising] = {}

    def made(rows: Dataset, split: str) -> Dataset:
        for column in _of_text(rows, chosen_columns(rows.column_names, data.columns, needed)):
            _check(rows, column, split)
            how = found.setdefault(column, Tokenising(column, tokenizer, identity, data.max_length))
            tokens = how.of(rows.with_format(None)).remove_columns(LOSSY)
            rows = concatenate_datasets([rows.remove_columns(column), tokens], axis=1)
        return rows

    splits = _each(splits, data, made)
    notes = (how.note(data.tokenizer) for how in found.values())
    return replace(splits, texts=frozenset(found), notes=(*splits.notes, *notes))


def _each(splits: Splits, data: Data, made: Callable[[Dataset, str], Dataset]) -> Splits:
    """`made` of each split; not of one to train on that is streamed, which is read as it comes."""
    train, is_stream = splits.train, data.streaming or isinstance(splits.train, IterableDataset)
    every = dict(splits.held_out) if is_stream else {data.split: train, **splits.held_out}
    tokens = {split: made(whole(rows), split) for split, rows in every.items()}
    held_out = {split: tokens[split] for split in splits.held_out}
    return replace(splits, train=train if is_stream else tokens[data.split], held_out=held_out)


def _of_text(rows: Dataset, columns: Columns) -> list[str]:
    """Columns that are read as tokens and as nothing else; none where there are no rows."""
    types = rows.features.arrow_schema
    alone = {own for name, own in columns.items() if isinstance(own, str) and name != LABELS}
    others = {own for given in columns.values() if not isinstance(given, str) for own in given} | {
        columns.get(LABELS)
    }
    return [own for own in sorted(alone - others) if len(rows) and is_text(types.field(own).type)]


def _check(texts: Dataset, column: str, split: str) -> None:
    check_values(
        texts.select_columns([column]).with_format("arrow")[:], Reader({"text": column}), split
    )
