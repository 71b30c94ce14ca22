"""From data.source to a data set as `datasets` has it: own files, a saved data set, a function, a
name on the Hub.
"""

import dataclasses
import difflib
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
from train.config.recipe import Data
from train.data.csv_tables import CsvTables
from train.data.digest import digest_of_files, digest_of_rows
from train.data.folders import HOW_SPLITS, kind_of
from train.data.image_folders import class_names_of
from train.data.json_rows import NoObject, as_arrow, columns_of, rows_of
from train.data.misread import Asked, told, unreadable
from train.data.own_files import BUILDING, OF_DATASETS, PREPARING, OwnFiles, own_files
from train.data.shares import DataError
from train.errors import UserError
from train.installation import find_shipped

Readable: TypeAlias = Dataset | IterableDataset

READERS: dict[str, type[DatasetBuilder]] = {
    "csv": CsvTables,
    "json": Json,
    "parquet": Parquet,
    "text": Text,
    "arrow": Arrow,
}
SAMPLE_BY = ("line", "paragraph", "document")
"""What a sample of a text file may be; between paragraphs stands an empty line."""
OWN_VERSION = "isobatch-1"
"""To be changed with what CsvTables makes of a file: the cache of datasets keeps it under this
name.
"""


class Source:
    """What data.source names, split by split. A function gives one data set, its split `train`, or
    several by name.

    It is called once: where it splits at random, no sample can be in two of its splits.
    """

    def __init__(self, data: Data, asked: Asked) -> None:
        """`asked`: the columns that the task reads, for advice about files that do not
        hold them.
        """
        self._data = data
        self.name = data.source
        self.asked = asked
        self._function = resolve_source(data.source)
        self._path = find_shipped(Path(data.source).expanduser())
        self._made: Any = None
        self.files = None if self._function is not None else own_files(data)

    @property
    def columns(self) -> list[str]:
        """Those that are read, by their names in the data."""
        lists = [[own] if isinstance(own, str) else list(own) for own in self.asked.values()]
        return list(dict.fromkeys(name for names in lists for name in names))

    @property
    def notes(self) -> tuple[str, ...]:
        """For the screen: what was left out, and what a sample of plain text is."""
        if self.files is None:
            return ()
        by = self.files.args.get("sample_by", "line")
        told = (
            f"texts     each {by} is a text of its own (data.args.sample_by: "
            f"{', '.join(SAMPLE_BY)})"
        )
        return tuple(filter(None, [self.files.note, told if self.files.kind == "text" else None]))

    def split(self, name: str, streaming: bool = False) -> Readable:
        """Raises DataError where there is none."""
        data = self._data
        if self._function is not None:
            if self._made is None:
                self._made = self._function(**data.args)
            return _chosen(self._made, name, data.source)
        if self.files is not None:
            if name not in self.files.by_split:
                raise DataError(_no_split(self.files, name, data.split))
            return _read(self.files, name, streaming, self.asked)
        if self._path.exists():
            return _saved(self._path, data.args, name)
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
        files = (
            [Path(file["filename"]) for file in rows.cache_files]
            if isinstance(rows, Dataset)
            else []
        )
        return digest_of_files(files, self._path)


def explain(source: Source, split: str, error: Exception) -> Exception:
    """For what only shows while a stream is read."""
    if source.files is not None and source.files.kind in READERS:
        return unreadable(source.files, split, source.asked, error, _reader_of)
    return told(error, f"cannot read data.source={source.name}")


def _chosen(found: Any, split: str, source: str) -> Readable:
    splits = found if isinstance(found, Mapping) else {"train": found}
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(splits)}")
    return splits[split]


def _saved(path: Path, args: Mapping[str, Any], split: str) -> Readable:
    try:
        saved: Dataset | DatasetDict = load_from_disk(str(path), **args)
    except Exception as error:
        raise told(error, f"cannot read the data set saved in {path}") from error
    return _chosen(saved, split, str(path))


def _no_split(files: OwnFiles, split: str, trained_on: str) -> str:
    known = list(files.by_split)
    others = [name for name in known if name != trained_on]
    if split == trained_on:
        fix = f"To train on {known[0]!r}, type: data.split={known[0]}"
    elif others:
        fix = f"To evaluate on {others[0]!r}, type: data.eval_split={others[0]}"
    else:
        fix = "To hold out a part of it, type: data.eval_split=null data.eval_fraction=0.2"
    return f"{files.root} has no split {split!r}; it has: {', '.join(known)}. {HOW_SPLITS}. {fix}"


def _read(files: OwnFiles, split: str, streaming: bool, asked: Asked) -> Readable:
    if files.pictures:
        if files.args:
            raise DataError(
                f"data.args={dict(files.args)}: a folder of images takes none. Type: data.args=null"
            )
        rows = files.pictures[split].dataset(class_names_of(files.pictures))
        return rows.to_iterable_dataset() if streaming else rows
    if files.kind == "imagefolder":
        return _load(
            files.kind, split, streaming, {"data_dir": glob.escape(str(files.root)), **files.args}
        )
    # datasets logs an error that it raises as well.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    try:
        builder = _reader_of(files)
        columns = _columns_of_json(files, split) if files.kind == "json" else None
        if columns is not None:
            return columns.to_iterable_dataset() if streaming else columns
        if streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare(
            **{name: files.args[name] for name in PREPARING if name in files.args}
        )
        return builder.as_dataset(split, in_memory=bool(files.args.get("keep_in_memory")))
    except Exception as error:
        slowly = (
            _rows_of_json(files, split)
            if files.kind == "json" and not isinstance(error, UserError)
            else None
        )
        if slowly is not None:
            return slowly.to_iterable_dataset() if streaming else slowly
        raise unreadable(files, split, asked, error, _reader_of) from error


def _columns_of_json(files: OwnFiles, split: str) -> Dataset | None:
    """What files hold as {column: values}; None: they hold rows."""
    found = [columns_of(file, files.args) for file in files.by_split[split]]
    if any(each is None for each in found):
        return None
    return concatenate_datasets([Dataset(as_arrow(each)) for each in found if each is not None])


def _rows_of_json(files: OwnFiles, split: str) -> Dataset | None:
    """What Arrow cannot read, as Python does: values of several kinds in a column, long numbers,
    other encodings.
    """
    try:
        return concatenate_datasets(
            [Dataset(as_arrow(rows_of(file, files.args))) for file in files.by_split[split]]
        )
    except (ValueError, OSError, NoObject):  # no JSON
        return None


def _reader_of(files: OwnFiles) -> DatasetBuilder:
    """What reads tables into the cache of datasets; files go by their names, where datasets would
    take patterns.
    """
    kind = READERS[files.kind]
    known = [option.name for option in dataclasses.fields(kind.BUILDER_CONFIG_CLASS)]
    known += OF_DATASETS
    for name in files.args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            mean = f"Did you mean {near[0]}? " if near else ""
            raise DataError(
                f"data.args.{name}: what reads {files.kind} files takes no such argument. {mean}It "
                f"takes: {', '.join(known)}"
            )
    if files.args.get("sample_by", SAMPLE_BY[0]) not in SAMPLE_BY:
        raise DataError(
            f"data.args.sample_by={files.args['sample_by']}: a text is one of "
            f"{', '.join(SAMPLE_BY)}"
        )
    chosen = {
        split: DataFilesList([str(file.absolute()) for file in own], [_state(file) for file in own])
        for split, own in files.by_split.items()
    }
    version = OWN_VERSION if kind is CsvTables else datasets.__version__
    building = {name: files.args[name] for name in BUILDING if name in files.args}
    return kind(data_files=DataFilesDict(chosen), hash=version, **building, **files.given)


def _state(file: Path) -> tuple[str, ...]:
    """By which a file that has changed is known."""
    stat = file.stat()
    return (str(stat.st_mtime_ns), str(stat.st_size))


def _load(name: str, split: str, streaming: bool, args: Mapping[str, Any]) -> Readable:
    try:
        return load_dataset(name, split=split, streaming=streaming, **args)
    except Exception as error:
        known = re.search(r"Unknown split \"?([^\".]+)\"?\. Should be one of \[(.*)\]", str(error))
        if known:
            raise DataError(f"{name} has no split {known[1]!r}; it has: {known[2]}") from error
        if "corresponds to no data" in str(error):
            raise DataError(f"{name} has no rows in split {split!r}") from error
        named = args.get("data_files") or args.get("data_dir")
        here = (
            f" ({named})"
            if named
            else ", which is no file or folder here"
            if not Path(name).exists()
            else ""
        )
        raise told(error, f"cannot read data.source={name}{here}") from error
