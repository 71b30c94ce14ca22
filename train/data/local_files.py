"""The files of a source that is a file, a folder, or a kind of file with data.args.data_files."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from train.config.recipe import Data
from train.data.folders import IMAGE_FOLDER, and_more, kind_of, one_kind, search, tables_by_split
from train.data.image_folders import ImageSplit, images_by_split
from train.data.shares import DataError
from train.installation import find_shipped

TABLES = ("csv", "json", "parquet", "text", "arrow")
"""Kinds of files that hold rows, by the names that datasets has for their readers."""

BUILDER_ARGS = ("cache_dir", "storage_options", "token")
PREPARE_ARGS = ("download_mode", "verification_mode", "num_proc")
LOAD_ARGS = (*BUILDER_ARGS, *PREPARE_ARGS, "keep_in_memory")
"""Arguments of load_dataset that are none of a format's: for its builder, or for its work."""


@dataclass(frozen=True)
class LocalFiles:
    root: Path
    kind: str  # the name that datasets has for what reads them
    by_split: Mapping[str, Sequence[Path]]
    # By split, where folders are the classes.
    images: Mapping[str, ImageSplit] = field(default_factory=dict)
    note: str | None = None  # for the screen: what was skipped
    args: Mapping[str, Any] = field(default_factory=dict)  # data.args

    @property
    def paths(self) -> list[Path]:
        """The files of all splits."""
        return list(chain.from_iterable(self.by_split.values()))

    @property
    def reader_args(self) -> dict[str, Any]:
        """The arguments with which the files are read: those of data.args over our defaults."""
        first = next(iter(self.by_split.values()))[0]
        defaults = {}
        # Not the last suffix alone, which may be .gz.
        if ".tsv" in first.suffixes or ".tab" in first.suffixes:
            defaults = {"sep": "\t"}
        if self.kind == "text":
            defaults = {"encoding": "utf-8-sig"}  # UTF-8, with a byte order mark or without
        configured = {name: value for name, value in self.args.items() if name not in LOAD_ARGS}
        return defaults | configured

    def args_among(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of data.args with these names."""
        return {name: self.args[name] for name in names if name in self.args}

    def only(self, file: Path) -> "LocalFiles":
        """One of the files alone, as the split `train`."""
        return replace(self, by_split={"train": [file]})


def find_local_files(data: Data) -> LocalFiles | None:
    """None for a source that is no file: a data set that was saved, a name of the Hub."""
    path = find_shipped(Path(data.source).expanduser())
    # A file or folder of that name comes before the kind of file.
    if data.source in TABLES and not path.exists():
        files = _named_files(data)
    elif not path.exists() or is_saved(path) or "data_files" in data.args:
        files = None
    elif path.is_file():
        kind = one_kind([path], path)
        files = LocalFiles(root=path, kind=kind, by_split={"train": [path]}, args=data.args)
    else:
        files = _of_folder(path, data.args)
    if files is not None:
        _check_not_empty(files)
    return files


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of datasets has written a folder."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _of_folder(folder: Path, args: Mapping[str, Any]) -> LocalFiles:
    contents = search(folder)
    # The kind comes first: folders are classes of images, and splits of tables.
    kind = one_kind(contents.files, folder)
    if kind != IMAGE_FOLDER:
        return LocalFiles(
            root=folder,
            kind=kind,
            by_split=tables_by_split(contents.files, folder, kind),
            note=contents.note,
            args=args,
        )
    has_metadata = any(kind_of(file) != kind for file in contents.files)
    if has_metadata:  # metadata.csv names the samples: what else lies there is not reported
        by_split = tables_by_split(contents.files, folder, kind)
        return LocalFiles(root=folder, kind=kind, by_split=by_split, args=args)
    images = images_by_split(contents, folder)
    return LocalFiles(
        root=folder,
        kind=kind,
        by_split={split: of_split.files for split, of_split in images.items()},
        images=images,
        note=contents.note,
        args=args,
    )


def _named_files(data: Data) -> LocalFiles | None:
    """Those of data.args.data_files: names, or patterns where there is no file of that name.

    None: they are elsewhere, for datasets to find.
    """
    args = dict(data.args)
    configured = args.pop("data_files", None)
    splits = configured if isinstance(configured, Mapping) else {"train": configured}
    by_split: dict[str, list[Path]] = {}
    for split, names in splits.items():
        for name in [names] if isinstance(names, str) else names or []:
            if "://" in str(name):
                return None
            by_split.setdefault(str(split), []).extend(_matches(str(name)))
    if not by_split and "data_dir" in args:
        return None
    if not by_split:
        raise DataError(
            f"data.source={data.source} is a kind of file. Name the file: "
            f"data.source=FILE.{data.source}"
        )
    files = LocalFiles(root=Path(), kind=data.source, by_split=by_split, args=args)
    if len(files.paths) == 1:
        return replace(files, root=files.paths[0])
    # Absolute: the digest names each file by its path below the folder that is around all of them.
    resolved = {}
    for split, paths in by_split.items():
        resolved[split] = [path.resolve() for path in paths]
    files = replace(files, by_split=resolved)
    root = os.path.commonpath([path.parent for path in files.paths])
    return replace(files, root=Path(root))


def _matches(name: str) -> list[Path]:
    path = Path(name).expanduser()
    # A name before a pattern: it may hold brackets or stars itself.
    if path.exists():
        return [path]
    # Path.glob refuses an absolute pattern: it starts from the root, or from this folder.
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not matches:
        raise DataError(f"data.args.data_files: there is no file {name} in {Path.cwd()}")
    return matches


def _check_not_empty(files: LocalFiles) -> None:
    empty = [path for path in files.paths if not path.stat().st_size]
    if empty:
        raise DataError(f"{and_more(empty)} is empty: 0 bytes. Delete or restore it")
