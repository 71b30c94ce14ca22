"""The data sets that a config names, with tokens in place of texts.

What takes long, and is found in a cache afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset, IterableDataset, concatenate_datasets, disable_progress_bars

from train.config import Config
from train.config.recipe import Data
from train.data.arrow_table import is_text
from train.data.checks import check_values
from train.data.columns import (
    Columns,
    as_list,
    check_column_names,
    match_columns,
    requested_columns,
)
from train.data.files import Readable, Source, explain
from train.data.packing import check_columns, check_is_text, make_tokenizer
from train.data.read_errors import explain_misread
from train.data.reading import LABELS, Reader
from train.data.tokenizers import Saved
from train.data.tokens import LOSSY, Tokenising, identify
from train.data.values import decode_and_fill
from train.distributed.ranks import launched_rank
from train.randomness import DATA_SEED, drawn_from

Tokenise = Callable[[Dataset, str], Dataset]
"""(rows, split) -> the rows, with tokens in place of texts"""


@dataclass(frozen=True)
class Splits:
    """Before samples are held out, and columns read."""

    source: Source
    train: Readable
    held_out: Mapping[str, Readable]  # by split
    texts: frozenset[str] = frozenset()  # columns of the data that hold tokens, except in a stream
    notes: tuple[str, ...] = ()  # for the screen
    digests: Mapping[str, str] = field(default_factory=dict)  # what the data of each split is


def load_splits(config: Config, needed: Sequence[str]) -> Splits:
    """Downloads, tokenises, and fills the cache of `datasets`; `needed`: columns of the task.

    Raises DataError where a source cannot be read, or a text is no text.
    """
    if launched_rank():
        disable_progress_bars()  # the others wait for rank 0
    with drawn_from(DATA_SEED):
        return _load_splits(config, needed)


def _load_splits(config: Config, needed: Sequence[str]) -> Splits:
    data = config.data
    columns = ("text",) if data.block_size is not None else needed
    source = Source(data, requested_columns(data.columns, columns))
    train = _read(source, data, data.split, data.streaming)
    held_out: dict[str, Readable] = {}
    # Of the source, before tokens are made of it: a change of tokenizer, cache or machine is no
    # change of the data.
    digests = {data.split: source.digest(data.split, train)}
    for name in _evaluated(config):
        # What is evaluated again and again is not a stream.
        # The same rows, read once.
        if name == data.split and not data.streaming:
            held_out[name] = train
        else:
            held_out[name] = _read(source, data, name)
        if name not in digests:
            digests[name] = source.digest(name, held_out[name])
    splits = Splits(
        source=source, train=train, held_out=held_out, notes=source.notes, digests=digests
    )
    with explain_misread(source.files, source.requested):
        if data.block_size is not None:
            return _documents(splits, data, needed)
        if data.max_length is not None:
            return _texts(splits, data, needed)
        return splits


def load_all(dataset: Readable) -> Dataset:
    """All rows in memory, also of what comes as a stream."""
    if isinstance(dataset, IterableDataset):
        return Dataset.from_list(list(dataset), features=dataset.features)
    return dataset


def _evaluated(config: Config) -> list[str]:
    """Splits that are evaluated on, each once."""
    names = list(config.evaluate.sets.values())
    if config.data.eval_split:
        names.insert(0, config.data.eval_split)
    return list(dict.fromkeys(name for name in names if name))


def _read(source: Source, data: Data, split: str, streaming: bool = False) -> Readable:
    rows = source.split(split, streaming)
    try:
        return decode_and_fill(rows, source.columns, data.fill)
    except Exception as error:
        raise explain(source, split, error) from error


def _documents(splits: Splits, data: Data, needed: Sequence[str]) -> Splits:
    """The column of texts alone, as tokens, to be cut into blocks."""
    check_column_names(data.columns, ("text",))
    column = str(data.columns.get("text", "text"))
    tokenizer = make_tokenizer(data)
    tokenising = Tokenising(column, tokenizer, identify(data.tokenizer, tokenizer))

    def tokenise(texts: Dataset, split: str) -> Dataset:
        check_columns(texts.column_names, column, needed)
        _check(texts, column, split)
        check_is_text(column, texts.features.arrow_schema.field(column).type)
        return tokenising.of(texts)

    tokenised = _tokenised(splits, data, tokenise)
    return replace(tokenised, notes=(*splits.notes, tokenising.note(data.tokenizer)))


def _texts(splits: Splits, data: Data, needed: Sequence[str]) -> Splits:
    """Columns of text as data.max_length tokens of a saved tokenizer.

    Texts that are their bytes are cut when they are read.
    """
    tokenizer = make_tokenizer(data)
    if not isinstance(tokenizer, Saved):
        return splits
    identity = identify(data.tokenizer, tokenizer)
    by_column: dict[str, Tokenising] = {}

    def tokenise(rows: Dataset, split: str) -> Dataset:
        columns = match_columns(rows.column_names, data.columns, needed)
        for column in _text_columns(rows, columns):
            _check(rows, column, split)
            if column not in by_column:
                by_column[column] = Tokenising(
                    column=column,
                    tokenizer=tokenizer,
                    identity=identity,
                    max_length=data.max_length,
                )
            # Only bits per byte need to know which texts lost bytes, and those are counted over
            # blocks.
            tokens = by_column[column].of(rows.with_format(None)).remove_columns(LOSSY)
            rows = concatenate_datasets([rows.remove_columns(column), tokens], axis=1)
        return rows

    splits = _tokenised(splits, data, tokenise)
    notes = [tokenising.note(data.tokenizer) for tokenising in by_column.values()]
    return replace(splits, texts=frozenset(by_column), notes=(*splits.notes, *notes))


def _tokenised(splits: Splits, data: Data, tokenise: Tokenise) -> Splits:
    """Each split; not one to train on that is streamed, which is tokenised as it is read."""
    tokens: dict[str, Dataset] = {}
    train = splits.train
    if not data.streaming and not isinstance(train, IterableDataset):
        tokens[data.split] = tokenise(train, data.split)
        train = tokens[data.split]
    for split, rows in splits.held_out.items():
        if split not in tokens:
            tokens[split] = tokenise(load_all(rows), split)
    held_out = {split: tokens[split] for split in splits.held_out}
    return replace(splits, train=train, held_out=held_out)


def _text_columns(rows: Dataset, columns: Columns) -> list[str]:
    """Columns that are read as tokens and as nothing else; none where there are no rows."""
    types = rows.features.arrow_schema
    alone: set[str] = set()
    others: set[str] = set()
    for name, names in columns.items():
        is_alone = isinstance(names, str) and name != LABELS
        (alone if is_alone else others).update(as_list(names))
    # Rows that are none have no tokens either (train.data.tokens.Tokenising.of).
    if not len(rows):
        return []
    return [name for name in sorted(alone - others) if is_text(types.field(name).type)]


def _check(texts: Dataset, column: str, split: str) -> None:
    table = texts.select_columns([column]).with_format("arrow")[:]
    check_values(table, Reader({"text": column}), split)
