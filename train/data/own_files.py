"""The files of a source that is a file, a folder, or a kind of file with data.args.data_files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from train.config.recipe import Data
from train.data.folders import first_of, kind_of, one_kind, search, tables_by_split
from train.data.image_folders import Pictures, pictures_by_split
from train.data.shares import DataError
from train.installation import find_shipped

TABLES = ("csv", "json", "parquet", "text", "arrow")
"""Kinds of files that hold rows, by the names that datasets has for what reads them."""

BUILDING = ("cache_dir", "storage_options", "token")
PREPARING = ("download_mode", "verification_mode", "num_proc")
OF_DATASETS = (*BUILDING, *PREPARING, "keep_in_memory")
"""Arguments of load_dataset besides those of a format: for its builder, and for the work of that.
"""


@dataclass(frozen=True)
class OwnFiles:
    root: Path
    kind: str  # the name that datasets has for what reads them
    by_split: Mapping[str, Sequence[Path]]
    # by split, where folders are the classes
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    note: str | None = None  # what was left out
    args: Mapping[str, Any] = field(default_factory=dict)  # of the reader, as the config has them

    @property
    def given(self) -> dict[str, Any]:
        """The arguments with which the files are read."""
        first = next(iter(self.by_split.values()))[0]
        is_tsv = ".tsv" in first.suffixes or ".tab" in first.suffixes
        usual = {"sep": "\t"} if is_tsv else {}
        if self.kind == "text":
            usual = {"encoding": "utf-8-sig"}  # UTF-8, with a mark at its head or without
        return usual | {n: value for n, value in self.args.items() if n not in OF_DATASETS}

    def of(self, file: Path) -> "OwnFiles":
        """One of them alone, as the split `train`."""
        return replace(self, by_split={"train": [file]})


def own_files(data: Data) -> OwnFiles | None:
    """None for a source that is no file: a data set that was saved, a name of the Hub."""
    path = find_shipped(Path(data.source).expanduser())
    if data.source in TABLES and not path.exists():
        return _named_files(data)
    if not path.exists() or is_saved(path) or "data_files" in data.args:
        return None
    if path.is_file():
        kind = one_kind([path], path)
        return _checked(OwnFiles(path, kind, {"train": [path]}, args=data.args))
    found = search(path)
    kind = one_kind(found.files, path)
    if kind != "imagefolder":
        by_split: Mapping[str, Sequence[Path]] = tables_by_split(found.files, path, kind)
        return _checked(OwnFiles(path, kind, by_split, note=found.note, args=data.args))
    if any(kind_of(file) != kind for file in found.files):  # metadata.csv says what there is
        return _checked(
            OwnFiles(path, kind, tables_by_split(found.files, path, kind), args=data.args)
        )
    pictures = pictures_by_split(found, path)
    files = {split: own.files for split, own in pictures.items()}
    return _checked(OwnFiles(path, kind, files, pictures, found.note, data.args))


def _named_files(data: Data) -> OwnFiles | None:
    """Those of data.args.data_files: names, or patterns where there is no file of that name."""
    args = dict(data.args)
    given = args.pop("data_files", None)
    splits = given if isinstance(given, Mapping) else {"train": given}
    by_split: dict[str, list[Path]] = {}
    for split, names in splits.items():
        for name in [names] if isinstance(names, str) else names or []:
            if "://" in str(name):
                return None
            path = Path(str(name)).expanduser()
            matches = (
                [path]
                if path.exists()
                else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            )
            if not matches:
                raise DataError(f"data.args.data_files: there is no file {name} in {Path.cwd()}")
            by_split.setdefault(str(split), []).extend(matches)
    if not by_split and "data_dir" in args:
        return None
    if not by_split:
        raise DataError(
            f"data.source={data.source} is a kind of file. Name the file: "
            f"data.source=FILE.{data.source}"
        )
    every = [file for files in by_split.values() for file in files]
    root = (
        Path(os.path.commonpath([file.resolve().parent for file in every]))
        if len(every) > 1
        else every[0]
    )
    resolved = (
        by_split
        if len(every) == 1
        else {split: [f.resolve() for f in own] for split, own in by_split.items()}
    )
    return _checked(OwnFiles(root, data.source, resolved, args=args))


def _checked(files: OwnFiles) -> OwnFiles:
    every = [file for own in files.by_split.values() for file in own]
    empty = [file for file in every if not file.stat().st_size]
    if empty:
        raise DataError(f"{first_of(empty)} is empty: 0 bytes. Delete or restore it")
    return files


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of datasets has written a folder."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()
