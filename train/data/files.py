"""From data.source to a data set as `datasets` has it: own files, a saved data set, a function, a name on the Hub."""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from train.config import resolve_source
from train.config.recipe import Data
from train.config.targets import FILES
from train.data.digest import digest_of_files, digest_of_rows
from train.data.shares import DataError

Readable: TypeAlias = Dataset | IterableDataset

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""{word in the name of a file, or name of a folder: the split that it holds}, as datasets has them."""

_HOW_SPLITS = "A split is a folder, or a file, with train, validation or test in its name"

ERRORS = (DatasetsError, OSError, ValueError, ImportError, StopIteration)
"""What datasets raises for a source that it cannot read, pandas' and Arrow's own errors included."""


class Source:
    """What data.source names, split by split. A function gives one data set, its split `train`, or several by name.

    It is called once: where it splits at random, no sample can be in two of its splits.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._function = resolve_source(data.source)
        self._path = Path(data.source).expanduser()
        self._made: Any = None

    def split(self, name: str, streaming: bool = False) -> Readable:
        """Raises DataError where there is none."""
        data = self._data
        if self._function is not None:
            if self._made is None:
                self._made = self._function(**data.args)
            return _chosen(self._made, name, data.source)
        if self._path.exists():
            return _own(self._path, data.args, name, streaming)
        if data.source.startswith(("/", ".", "~")) or kind_of(self._path):
            raise DataError(f"data.source={data.source}: there is no such file or folder in {Path.cwd()}")
        return _load(data.source, data.source, name, streaming, data.args)

    def digest(self, name: str, rows: Readable) -> str:
        """What the data of a split is, in one short text; `rows`: the split."""
        path = self._path
        if self._function is not None or not path.exists():
            return digest_of_rows(rows)
        if _is_saved(path):
            files = [Path(file["filename"]) for file in rows.cache_files] if isinstance(rows, Dataset) else []
            return digest_of_files(files, path)
        return digest_of_files(_own_files(path).by_split[name], path)


def kind_of(path: Path) -> str | None:
    """The name that datasets has for what reads such a file; None: nobody knows."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if not suffixes:
        return None
    return "imagefolder" if suffixes[-1] in IMAGES else FILES.get(suffixes[-1])


def _chosen(found: Any, split: str, source: str) -> Readable:
    splits = found if isinstance(found, Mapping) else {"train": found}
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(splits)}")
    return splits[split]


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of datasets has written a folder."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


@dataclass(frozen=True)
class _Files:
    kind: str  # the name that datasets has for what reads them
    all: Sequence[Path]
    by_split: Mapping[str, Sequence[Path]]


def _own_files(path: Path) -> _Files:
    """The files of a source that is a file or a folder."""
    files = [path] if path.is_file() else _files_in(path)
    kind = _one_kind(files, path)
    empty = [file for file in files if not file.stat().st_size]
    if empty:
        raise DataError(f"{_some(empty)} is empty: 0 bytes. Delete or restore it")
    by_split = {"train": files} if path.is_file() else _by_split(files, path, kind)
    return _Files(kind, files, by_split)


def _own(path: Path, args: Mapping[str, Any], split: str, streaming: bool) -> Readable:
    if _is_saved(path):
        try:
            saved: Dataset | DatasetDict = load_from_disk(str(path), **args)
        except ERRORS as error:
            raise DataError(f"cannot read the data set saved in {path}: {_said(error)}") from error
        return _chosen(saved, split, str(path))
    own = _own_files(path)
    kind, by_split = own.kind, own.by_split
    if split not in by_split:
        raise DataError(f"{path} has no split {split!r}; it has: {', '.join(by_split)}. {_HOW_SPLITS}")
    if kind == "imagefolder":  # as patterns: each name on a list of thousands would be looked up by itself
        chosen: dict[str, Any] = {name: _pattern(path, members) for name, members in by_split.items()}
    else:
        chosen = {name: [str(file) for file in members] for name, members in by_split.items()}
    arguments = {"data_files": chosen, **_options(kind, own.all), **args}
    return _load(kind, str(path), split, streaming, arguments, [] if kind == "imagefolder" else by_split[split])


def _options(kind: str, files: Sequence[Path]) -> dict[str, Any]:
    """What datasets (5.2) does not find out by itself, or finds out for each split by itself."""
    if files[0].suffix.lower() == ".tsv":
        return {"sep": "\t"}
    has_classes = kind == "imagefolder" and len({file.parent.name for file in files} - SPLITS.keys()) > 1
    if has_classes and all(kind_of(file) == kind for file in files):  # else metadata.csv says what there is
        return {"drop_labels": False}  # a split with one class has labels too
    return {}


def _load(
    name: str, source: str, split: str, streaming: bool, args: Mapping[str, Any], files: Sequence[Path] = ()
) -> Readable:
    """load_dataset, its errors in our words; `files` are those of the split, to find a damaged one among."""
    try:
        return load_dataset(name, split=split, streaming=streaming, **args)
    except ERRORS as error:
        known = re.search(r"Unknown split \"?([^\".]+)\"?\. Should be one of \[(.*)\]", str(error))
        if known:
            raise DataError(f"{source} has no split {known[1]!r}; it has: {known[2]}") from error
        if "corresponds to no data" in str(error):
            raise DataError(f"{source} has no rows in split {split!r}") from error
        for file in files:
            if said := _damage(name, file, args):
                raise DataError(f"cannot read {file}: {said}. Is it damaged, or not what its name says?") from error
        raise DataError(f"cannot read data.source={source}{_named(args)}: {_said(error)}") from error


def _named(args: Mapping[str, Any]) -> str:
    """The files that load_dataset was told by its own arguments."""
    named = args.get("data_files") or args.get("data_dir")
    return f" ({named})" if named else ""


def damaged(data: Data, error: Exception) -> DataError:
    """The same, for what only shows while a stream is read."""
    path = Path(data.source).expanduser()
    files = [path] if path.is_file() else _files_in(path) if path.is_dir() else []
    for file in files:
        kind = kind_of(file)
        if kind not in (None, "imagefolder") and (said := _damage(str(kind), file, data.args)):
            return DataError(f"cannot read {file}: {said}. Is it damaged, or not what its name says?")
    return DataError(f"cannot read data.source={data.source}{_named(data.args)}: {_said(error)}")


def _damage(name: str, file: Path, args: Mapping[str, Any]) -> str:
    """What goes wrong when a file is read to its end, alone, with the other arguments of its split; nothing: ''."""
    args = {**_options(name, [file]), **args, "data_files": [str(file)]}
    try:
        rows = load_dataset(name, split="train", streaming=True, **args)
        for _ in rows.with_format("arrow").iter(batch_size=10_000):
            pass
    except ERRORS as error:
        return _said(error)
    return ""


def _said(error: BaseException) -> str:
    """datasets tells why in the cause of its error."""
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    lines = str(cause).strip().splitlines() or ["nothing in it"]
    return f"{type(cause).__name__}: {lines[0].strip()}"


def _files_in(folder: Path) -> list[Path]:
    """Files that can be samples; hidden ones, readmes and what else lies about are not."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and kind_of(path)]
    visible = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return [path for path in visible if path.stem.lower() not in ("readme", "license", "licence")]


def _one_kind(files: Sequence[Path], path: Path) -> str:
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(kind_of(file) or "", []).append(file)
    beside = [file for kind, own in kinds.items() for file in own if kind != "imagefolder"]
    if "imagefolder" in kinds and all(file.stem == "metadata" for file in beside):
        return "imagefolder"  # metadata.csv: columns beside the images
    known = f"{', '.join(FILES)}, images ({', '.join(sorted(IMAGES))})"
    if not kinds or "" in kinds:
        raise DataError(f"data.source={path}: no file that can be read as samples. Known are: {known}")
    if len(kinds) > 1:
        counts = ", ".join(f"{len(own)} x {own[0].suffix} ({own[0].name})" for own in kinds.values())
        kind, own = max(kinds.items(), key=lambda pair: len(pair[1]))
        raise DataError(
            f"data.source={path} holds files of several kinds: {counts}; one data set is of one kind. "
            f"Type: data.source={own[0].parent} if they lie apart, or data.source={kind} "
            f"'data.args={{data_files: \"{path}/**/*{own[0].suffix}\"}}'"
        )
    return next(iter(kinds))


def _by_split(files: Iterable[Path], folder: Path, kind: str) -> dict[str, list[Path]]:
    """{split: its files}. Where no name says otherwise, all of them are to train on."""
    found: dict[str | None, list[Path]] = {}
    for file in files:
        parts = file.relative_to(folder).parts
        names = parts[:1] if len(parts) > 1 or kind == "imagefolder" else ()
        own = () if kind == "imagefolder" else tuple(re.split(r"[-._ 0-9]+", file.name.lower()))
        words = [*(name.lower() for name in names), *own]
        found.setdefault(next((SPLITS[word] for word in words if word in SPLITS), None), []).append(file)
    rest = found.pop(None, [])
    named = {split: own for split, own in found.items() if split is not None}
    if not named:
        return {"train": rest}
    if rest:
        raise DataError(f"{_some(rest)} belongs to no split, while others do ({', '.join(named)}). {_HOW_SPLITS}")
    return named


def _pattern(folder: Path, members: Sequence[Path]) -> list[str]:
    """All that lies where the members of a split lie."""
    tops = dict.fromkeys(member.relative_to(folder).parts[0] for member in members)
    if any((folder / top).is_dir() and top.lower() in SPLITS for top in tops):
        return [f"{glob.escape(str(folder / top))}/**" for top in tops]
    return [f"{glob.escape(str(folder))}/**"]


def _some(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"
