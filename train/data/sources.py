"""Which samples are trained on, which are held out, and how they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from datasets import Dataset, IterableDataset

from train.batch.window import Batch
from train.config import Config, resolve_source
from train.data.arrow_table import is_text_value
from train.data.by_length import cut_by_length
from train.data.columns import match_columns
from train.data.files import Readable, explain
from train.data.holdout import hold_out
from train.data.image_reading import check_form
from train.data.labels import LabelRange, class_names, label_range
from train.data.opener import Opener, as_arrow
from train.data.packed_stream import PackedStream
from train.data.packing import check_columns, make_tokenizer, pack
from train.data.padding import CutEvaluation, Padding
from train.data.protocols import EvaluationSet, TrainingSet
from train.data.read_errors import explain_misread
from train.data.reading import LABELS, Reader
from train.data.scales import Fitted
from train.data.shares import DataError
from train.data.splits import Splits, load_all, load_splits
from train.data.tokenizers import Bytes, Saved
from train.randomness import DATA_SEED, drawn_from


@dataclass(frozen=True)
class Datasets:
    train: TrainingSet
    evaluation: dict[str, EvaluationSet]  # the main set has the name ""
    # Names, in the order of their numbers.
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: tuple[LabelRange, ...] = ()
    notes: tuple[str, ...] = ()  # for the screen
    padding: Padding | None = None  # what is cut off micro-batches (batch.micro_tokens)
    digests: Mapping[str, str] = field(default_factory=dict)  # what the data of each split is
    fitted: Fitted | None = None  # by which inputs are scaled (data.normalize)

    def trial(self, seed: int, count: int) -> Batch:
        """A few samples to try things on before the first step, with all of their padding."""
        return self.train.trial(seed, count)


def open_datasets(config: Config, needed: Sequence[str], splits: Splits | None = None) -> Datasets:
    """The training and evaluation samples.

    `needed`: the columns of the task, which are those of the samples. Raises DataError for columns
    that are missing, and for values that cannot be trained on.
    """
    splits = splits or load_splits(config, needed)
    source = splits.source
    # A constant: what a source draws, such as a split at random, is the same for all seeds and on
    # all ranks.
    with drawn_from(DATA_SEED), explain_misread(source.files, source.requested):
        if config.data.block_size is not None:
            datasets = _open_blocks(config, needed, splits)
        else:
            datasets = _open_samples(config, needed, splits)
    return replace(datasets, digests=splits.digests)


def _open_samples(config: Config, needed: Sequence[str], splits: Splits) -> Datasets:
    data = config.data
    train = _training_split(config, splits)
    opener = Opener(config, _reader(config, needed, splits, train), _explanation(splits, config))
    reader = opener.reader
    check_form(data.image, train.features, reader.names)
    held_out = {split: opener.checked(rows, split) for split, rows in splits.held_out.items()}
    evaluation: dict[str, EvaluationSet] = {}
    rows_to_train = None
    if data.eval_split is not None:
        evaluation[""] = opener.evaluation(held_out[data.eval_split])
    if isinstance(train, Dataset):
        train = opener.checked(train, data.split)
        if data.eval_split is None and data.eval_fraction:
            # Out of the rows that were checked, so that a wrong value is named by its row in the
            # file.
            holdout = hold_out(len(train), data.eval_fraction)
            rows_to_train = holdout.train
            evaluation[""] = opener.evaluation(train, holdout.held_out)
    for name, split in config.evaluate.sets.items():
        evaluation[name] = opener.evaluation(held_out[split])
    samples = opener.training(train, rows_to_train)
    datasets = Datasets(
        train=samples,
        evaluation=evaluation,
        classes=reader.classes,
        labels=_label_ranges({data.split: train, **held_out}, reader),
        notes=(*splits.notes, *opener.notes(samples)),
    )
    if config.batch.micro_tokens is None:
        return datasets
    # None for a stream, which cut_by_length refuses.
    types = train.features.arrow_schema if isinstance(train, Dataset) else None
    by_length = cut_by_length(samples, reader, types, config.batch.micro_tokens)
    return replace(
        datasets,
        train=by_length,
        evaluation={
            name: CutEvaluation(rows, by_length.padding) for name, rows in evaluation.items()
        },
        padding=by_length.padding,
    )


def _reader(config: Config, needed: Sequence[str], splits: Splits, train: Readable) -> Reader:
    data = config.data
    # Streams that name no columns are asked for those of their first sample.
    features = train.features or {}
    texts = [name for name, feature in features.items() if is_text_value(feature)]
    available = _column_names(train, _explanation(splits, config))
    columns = match_columns(available, data.columns, needed, texts)
    names = class_names(as_arrow(train), train.features, columns.get(LABELS))
    tokenizer = make_tokenizer(data)
    if data.max_length is not None and not isinstance(tokenizer, Bytes | Saved):
        raise DataError(
            f"data.max_length fills up texts, and data.tokenizer={data.tokenizer} does not say by "
            "which token. Set: data.tokenizer=bytes, or the folder of a tokenizer that "
            "transformers has saved"
        )
    reader = Reader(
        columns=columns, max_length=data.max_length, texts=splits.texts, image=data.image
    )
    if names:
        reader = replace(reader, classes={LABELS: names})
    if isinstance(tokenizer, Saved):
        reader = replace(reader, tokenizer=tokenizer)
    return reader


def _open_blocks(config: Config, needed: Sequence[str], splits: Splits) -> Datasets:
    """Texts as blocks of tokens; documents are held out, not blocks."""
    data = config.data
    train = _training_split(config, splits)
    by_split = {split: load_all(texts) for split, texts in splits.held_out.items()}
    documents = {name: by_split[split] for name, split in config.evaluate.sets.items()}
    if data.eval_split is not None:
        documents[""] = by_split[data.eval_split]
    elif data.eval_fraction and isinstance(train, Dataset):
        holdout = hold_out(len(train), data.eval_fraction)
        documents[""] = train.select(holdout.held_out)
        train = train.select(holdout.train)
    evaluation: dict[str, EvaluationSet] = {}
    for name in sorted(documents):
        # Documents are held out before they are cut: a block may hold parts of several.
        evaluation[name] = pack(documents[name], data, needed)
    notes = splits.notes
    if data.preload is False and (documents or isinstance(train, Dataset)):
        notes += ("loading   blocks are held in memory, whatever data.preload says",)
    if isinstance(train, Dataset):
        blocks: TrainingSet = pack(train, data, needed)
    else:
        blocks = _stream_of_blocks(config, needed, splits, train)
    return Datasets(blocks, evaluation, notes=notes)


def _stream_of_blocks(
    config: Config, needed: Sequence[str], splits: Splits, train: IterableDataset
) -> PackedStream:
    data = config.data
    assert data.block_size is not None
    explanation = _explanation(splits, config)
    column = str(data.columns.get("text", "text"))
    check_columns(_column_names(train, explanation), column, needed)
    tokenizer = make_tokenizer(data)
    is_own_tokenizer = not isinstance(tokenizer, Bytes | Saved)
    return PackedStream(
        dataset=train,
        reader=Reader({"text": column}),
        shuffle_buffer=data.shuffle_buffer,
        by_rank=data.split_by_node,
        explain=explanation,
        by_user_code=resolve_source(data.source) is not None or is_own_tokenizer,
        tokenizer=tokenizer,
        block_size=data.block_size,
        needed=needed,
    )


def _training_split(config: Config, splits: Splits) -> Readable:
    """A stream where the config asks for one; none of it can be held out."""
    data = config.data
    train = splits.train
    if data.streaming and isinstance(train, Dataset):
        train = train.to_iterable_dataset()
    if isinstance(train, IterableDataset) and data.eval_fraction and data.eval_split is None:
        raise DataError(
            f"data.eval_fraction={data.eval_fraction} of a stream of unknown length. Set: "
            "data.eval_split=test"
        )
    return train


def _explanation(splits: Splits, config: Config) -> Callable[[Exception], Exception]:
    """What a stream that cannot be read means."""
    return lambda error: explain(splits.source, config.data.split, error)


def _column_names(train: Readable, explanation: Callable[[Exception], Exception]) -> list[str]:
    try:
        return train.column_names or list(next(iter(train), {}))
    except Exception as error:
        raise explanation(error) from error


def _label_ranges(splits: Mapping[str, Readable], reader: Reader) -> tuple[LabelRange, ...]:
    ranges = [label_range(as_arrow(rows), reader, split) for split, rows in splits.items()]
    return tuple(each for each in ranges if each is not None)
