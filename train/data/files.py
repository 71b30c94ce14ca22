"""From data.source to a data set of `datasets`: local files, a saved set, a function, the Hub."""

import dataclasses
import glob
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text

from train.config import resolve_source
from train.config.problems import closest
from train.config.recipe import Data
from train.data.columns import Columns, flat_columns
from train.data.csv_tables import CsvTables
from train.data.digest import digest_of_files, digest_of_rows
from train.data.folders import HOW_SPLITS, IMAGE_FOLDER, kind_of
from train.data.image_folders import class_names_of
from train.data.json_rows import NotAnObject, as_arrow, read_columns, read_rows
from train.data.local_files import (
    BUILDER_ARGS,
    LOAD_ARGS,
    PREPARE_ARGS,
    LocalFiles,
    find_local_files,
)
from train.data.read_errors import as_data_error, explain_unreadable
from train.data.shares import DataError
from train.errors import UserError
from train.installation import find_shipped

Readable: TypeAlias = Dataset | IterableDataset

BUILDERS: dict[str, type[DatasetBuilder]] = {
    "csv": CsvTables,
    "json": Json,
    "parquet": Parquet,
    "text": Text,
    "arrow": Arrow,
}
SAMPLE_BY = ("line", "paragraph", "document")
"""What a sample of a text file may be; between paragraphs stands an empty line."""
CSV_VERSION = "isobatch-1"
"""To be changed with what CsvTables makes of a file: the cache of datasets keeps it under this
name.
"""


class Source:
    """What data.source names, split by split.

    A function gives one data set, its split `train`, or several by name. It is called once: where
    it splits at random, no sample can be in two of its splits.
    """

    def __init__(self, data: Data, requested: Columns) -> None:
        """`requested`: the columns that the task reads, for advice about files that lack them."""
        self._data = data
        self.name = data.source
        self.requested = requested
        self._function = resolve_source(data.source)
        self._path = find_shipped(Path(data.source).expanduser())
        self._result: Any = None  # of the function
        self.files: LocalFiles | None = None
        if self._function is None:
            self.files = find_local_files(data)

    @property
    def columns(self) -> list[str]:
        """Those that are read, by their names in the data."""
        return flat_columns(self.requested)

    @property
    def notes(self) -> tuple[str, ...]:
        """For the screen: which files are skipped, and what a sample of plain text is."""
        if self.files is None:
            return ()
        notes = []
        if self.files.note:
            notes.append(self.files.note)
        if self.files.kind == "text":
            unit = self.files.args.get("sample_by", SAMPLE_BY[0])
            notes.append(
                f"texts     each {unit} is a text of its own (data.args.sample_by: "
                f"{', '.join(SAMPLE_BY)})"
            )
        return tuple(notes)

    def split(self, name: str, streaming: bool = False) -> Readable:
        """Raises DataError where there is none."""
        data = self._data
        if self._function is not None:
            if self._result is None:
                self._result = self._function(**data.args)
            return _split_of(self._result, name, data.source)
        if self.files is not None:
            if name not in self.files.by_split:
                raise DataError(_no_split(self.files, name, data.split))
            return _read(self.files, name, streaming, self.requested)
        if self._path.exists():
            return _read_saved(self._path, data.args, name)
        # A path by its looks: the Hub would only say that it has no data set of that name.
        if data.source.startswith(("/", ".", "~")) or kind_of(self._path):
            raise DataError(
                f"data.source={data.source}: there is no such file or folder in {Path.cwd()}"
            )
        return _load(data.source, name, streaming, data.args)

    def digest(self, name: str, rows: Readable) -> str:
        """What the data of a split is, in one short text; `rows`: the split."""
        if self.files is not None:
            return digest_of_files(self.files.by_split[name], self.files.root)
        if self._function is not None or not self._path.exists():
            return digest_of_rows(rows)
        files = []
        if isinstance(rows, Dataset):
            files = [Path(file["filename"]) for file in rows.cache_files]
        return digest_of_files(files, self._path)


def explain(source: Source, split: str, error: Exception) -> Exception:
    """What an error means that only shows while a stream is read."""
    if source.files is not None and source.files.kind in BUILDERS:
        return explain_unreadable(source.files, split, source.requested, error, _builder_of)
    return as_data_error(error, f"cannot read data.source={source.name}")


def _split_of(result: Any, split: str, source: str) -> Readable:
    splits = result
    if not isinstance(result, Mapping):
        splits = {"train": result}
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(splits)}")
    return splits[split]


def _read_saved(path: Path, args: Mapping[str, Any], split: str) -> Readable:
    try:
        saved: Dataset | DatasetDict = load_from_disk(str(path), **args)
    except Exception as error:
        raise as_data_error(error, f"cannot read the data set saved in {path}") from error
    return _split_of(saved, split, str(path))


def _no_split(files: LocalFiles, split: str, trained_on: str) -> str:
    known = list(files.by_split)
    others = [name for name in known if name != trained_on]
    if split == trained_on:
        fix = f"To train on {known[0]!r}, set: data.split={known[0]}"
    elif others:
        fix = f"To evaluate on {others[0]!r}, set: data.eval_split={others[0]}"
    else:
        fix = "To hold out a part of it, set: data.eval_split=null data.eval_fraction=0.2"
    return f"{files.root} has no split {split!r}; it has: {', '.join(known)}. {HOW_SPLITS}. {fix}"


def _read(files: LocalFiles, split: str, streaming: bool, requested: Columns) -> Readable:
    if files.images:
        rows: Any = _read_images(files, split)
    elif files.kind == IMAGE_FOLDER:
        # datasets takes it for a pattern: a folder with brackets in its name would hold nothing.
        args = {"data_dir": glob.escape(str(files.root)), **files.args}
        return _load(files.kind, split, streaming, args)
    else:
        # datasets logs an error that it raises as well.
        logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
        try:
            builder = _builder_of(files)
            # Asked first: Arrow would take {column: values} for one row of lists.
            rows = _columns_of_json(files, split) if files.kind == "json" else None
            if rows is None:
                return _build(builder, files, split, streaming)
        except Exception as error:
            # Python's parser is slower than Arrow's, and takes more: mixed types, long integers.
            rows = _rows_of_json(files, split, error)
            if rows is None:
                raise explain_unreadable(files, split, requested, error, _builder_of) from error
    return rows.to_iterable_dataset() if streaming else rows


def _read_images(files: LocalFiles, split: str) -> Dataset:
    if files.args:
        raise DataError(
            f"data.args={dict(files.args)}: a folder of images takes none. Set: data.args=null"
        )
    return files.images[split].dataset(class_names_of(files.images))


def _build(builder: DatasetBuilder, files: LocalFiles, split: str, streaming: bool) -> Readable:
    if streaming:
        return builder.as_streaming_dataset(split)
    builder.download_and_prepare(**files.args_among(PREPARE_ARGS))
    return builder.as_dataset(split, in_memory=bool(files.args.get("keep_in_memory")))


def _columns_of_json(files: LocalFiles, split: str) -> Dataset | None:
    """Of files that hold {column: values}; None: they hold rows."""
    # All of them first: the second one may be what a DataError is to name.
    contents = [read_columns(file, files.args) for file in files.by_split[split]]
    tables = [Dataset(as_arrow(columns)) for columns in contents if columns is not None]
    return concatenate_datasets(tables) if len(tables) == len(contents) else None


def _rows_of_json(files: LocalFiles, split: str, error: Exception) -> Dataset | None:
    """What Arrow's reader refused with `error`; None: it is no JSON for Python either."""
    # A sentence of ours says already what to type.
    if files.kind != "json" or isinstance(error, UserError):
        return None
    try:
        tables = [Dataset(as_arrow(read_rows(file, files.args))) for file in files.by_split[split]]
        return concatenate_datasets(tables)
    except (ValueError, OSError, NotAnObject):
        return None


def _builder_of(files: LocalFiles) -> DatasetBuilder:
    """What reads tables into the cache of datasets."""
    builder = BUILDERS[files.kind]
    _check_args(files, builder)
    # Names and versions as datasets would find them, without its patterns: a file whose name holds
    # brackets or stars is read too.
    data_files = {}
    for split, paths in files.by_split.items():
        names = [str(path.absolute()) for path in paths]
        data_files[split] = DataFilesList(names, [_version_of(path) for path in paths])
    return builder(
        data_files=DataFilesDict(data_files),
        hash=CSV_VERSION if builder is CsvTables else datasets.__version__,
        **files.args_among(BUILDER_ARGS),
        **files.reader_args,
    )


def _check_args(files: LocalFiles, builder: type[DatasetBuilder]) -> None:
    known = [option.name for option in dataclasses.fields(builder.BUILDER_CONFIG_CLASS)]
    known += LOAD_ARGS
    for name in files.args:
        if name not in known:
            near = closest(name, known)
            did_you_mean = f"Did you mean {near}? " if near else ""
            raise DataError(
                f"data.args.{name}: what reads {files.kind} files takes no such argument. "
                f"{did_you_mean}It takes: {', '.join(known)}"
            )
    sample_by = files.args.get("sample_by", SAMPLE_BY[0])
    if sample_by not in SAMPLE_BY:
        raise DataError(f"data.args.sample_by={sample_by}: a text is one of {', '.join(SAMPLE_BY)}")


def _version_of(file: Path) -> tuple[str, ...]:
    """By which the cache of datasets sees that a file has changed."""
    # Both, since a copy may keep the time of the original.
    status = file.stat()
    return (str(status.st_mtime_ns), str(status.st_size))


def _load(name: str, split: str, streaming: bool, args: Mapping[str, Any]) -> Readable:
    try:
        return load_dataset(name, split=split, streaming=streaming, **args)
    except Exception as error:
        # Known by its words: datasets (5.2) has no class of error for it.
        other = re.search(r"Unknown split \"?([^\".]+)\"?\. Should be one of \[(.*)\]", str(error))
        if other:
            raise DataError(f"{name} has no split {other[1]!r}; it has: {other[2]}") from error
        if "corresponds to no data" in str(error):
            raise DataError(f"{name} has no rows in split {split!r}") from error
        location = args.get("data_files") or args.get("data_dir")
        where = ""
        if location:
            where = f" ({location})"
        elif not Path(name).exists():
            where = ", which is no file or folder here"
        raise as_data_error(error, f"cannot read data.source={name}{where}") from error
