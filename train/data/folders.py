"""What a folder holds: which files are samples, of which kind, and of which split."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config.targets import FILES
from train.data.shares import DataError

IMAGES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".jp2",
        ".avif",
    }
)
COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
IMAGE_FOLDER = "imagefolder"
"""The name that datasets has for what reads images."""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""{word in the name of a file, or name of a folder: the split that it holds}, as datasets has them.
"""

IGNORED_FILES = frozenset(
    {".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore", ".gitattributes"}
)
"""What systems leave in folders; nobody takes it for a sample."""
DOCUMENTATION = frozenset({"readme", "license", "licence"})
"""Stems of files that describe the others."""

HOW_SPLITS = "A split is a folder, or a file, with train, validation or test in its name"


@dataclass(frozen=True)
class FolderContents:
    """What lies below a folder; links are followed."""

    files: Sequence[Path]  # that can be samples, in the order of their names
    skipped: Sequence[Path]

    @property
    def note(self) -> str | None:
        """For the screen: what is no sample, by kind."""
        if not self.skipped:
            return None
        by_reason = _grouped(self.skipped, [_why_skipped(path) for path in self.skipped])
        counts = [f"{len(own):,} x {reason} ({own[0]})" for reason, own in by_reason.items()]
        return f"skipped   {', '.join(counts)}: no samples, going by their names"


def kind_of(path: Path) -> str | None:
    """The name that datasets has for what reads such a file; None: unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if not suffixes:
        return None
    return IMAGE_FOLDER if suffixes[-1] in IMAGES else FILES.get(suffixes[-1])


def search(folder: Path) -> FolderContents:
    """All files below a folder. Hidden files and files of an unknown kind are skipped."""
    files: list[Path] = []
    skipped: list[Path] = []
    # scandir has no order: by their names, rows have the same numbers on every machine.
    for path in sorted(_walk(folder, (os.path.realpath(folder),)), key=str):
        if path.name.lower() in IGNORED_FILES or path.name.startswith("._"):
            continue
        if path.stem.lower() in DOCUMENTATION:
            continue
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if kind_of(path) is not None and not is_hidden and path.is_file():
            files.append(path)
        else:
            skipped.append(path)
    return FolderContents(files, skipped)


def one_kind(files: Sequence[Path], path: Path) -> str:
    """The kind of all files of a source. Raises DataError where there are several, or none."""
    by_kind = _grouped(files, [kind_of(file) or "" for file in files])
    others = [file for file in files if kind_of(file) != IMAGE_FOLDER]
    if IMAGE_FOLDER in by_kind and all(file.stem == "metadata" for file in others):
        return IMAGE_FOLDER  # metadata.csv: columns beside the images
    if not by_kind or "" in by_kind:
        raise _unknown_kind(path)
    if len(by_kind) > 1:
        raise _several_kinds(by_kind, others, path)
    return next(iter(by_kind))


def tables_by_split(files: Iterable[Path], folder: Path, kind: str) -> dict[str, list[Path]]:
    """{split: its files}. Where no name contains a split, all of them are to train on."""
    by_split: dict[str, list[Path]] = {}
    without_split: list[Path] = []
    for file in files:
        split = _split_in_name(file.relative_to(folder))
        if split is None:
            without_split.append(file)
        else:
            by_split.setdefault(split, []).append(file)
    if not by_split:
        return {"train": without_split}
    # Refused, since either guess would be silent: to train on what is meant for a test, or to lose
    # it.
    if without_split:
        every = {**by_split, "train": [*by_split.get("train", []), *without_split]}
        typed = [f"{split}: [{_quoted(paths)}]" for split, paths in sorted(every.items())]
        raise DataError(
            f"{and_more(without_split)} belongs to no split, while others do "
            f"({', '.join(by_split)}). {HOW_SPLITS}. To train on it too, set: data.source={kind} "
            f"'data.args={{data_files: {{{', '.join(typed)}}}}}'"
        )
    return by_split


def and_more(files: Sequence[Path]) -> str:
    """The first file, and how many more there are."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"


def counts_by_suffix(files: Sequence[Path]) -> str:
    counts = Counter(file.suffix.lower() or "no suffix" for file in files)
    return ", ".join(f"{count:,} x {suffix}" for suffix, count in counts.items())


def _grouped(files: Sequence[Path], keys: Sequence[str]) -> Mapping[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file, key in zip(files, keys, strict=True):
        groups.setdefault(key, []).append(file)
    return groups


def _unknown_kind(path: Path) -> DataError:
    known = f"{', '.join(FILES)}, images ({', '.join(sorted(IMAGES))})"
    fix = ""
    if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
        table = f"data.source=csv 'data.args={{data_files: \"{path}\"}}'"
        fix = f" If it is a table as text, set: {table}"
    return DataError(
        f"data.source={path}: no file that can be read as samples. Known are: {known}.{fix}"
    )


def _several_kinds(
    by_kind: Mapping[str, Sequence[Path]], others: Sequence[Path], path: Path
) -> DataError:
    """`others`: those that are no images."""
    counts = [f"{len(own)} x {own[0].suffix} ({own[0].name})" for own in by_kind.values()]
    most = max(by_kind, key=lambda kind: len(by_kind[kind]))
    if most == IMAGE_FOLDER:
        fix = f"Move the {len(others)} others, from {others[0]} on, out of it"
    else:
        pattern = f"{path}/**/*{by_kind[most][0].suffix}"
        fix = f"Set: data.source={most} 'data.args={{data_files: \"{pattern}\"}}'"
    return DataError(
        f"data.source={path} holds files of several kinds: {', '.join(counts)}; one data set is of "
        f"one kind. {fix}"
    )


def _split_in_name(file: Path) -> str | None:
    """The first split that a folder around a file, or its name, holds; None: there is none."""
    folders = [part.lower() for part in file.parts[:-1]]
    # Digits separate words too: train1.csv, test-00000-of-00001.parquet.
    for word in [*folders, *re.split(r"[-._ 0-9]+", file.name.lower())]:
        if word in SPLITS:
            return SPLITS[word]
    return None


def _quoted(files: Sequence[Path]) -> str:
    return ", ".join(f'"{file}"' for file in files)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All that lies below; a link to a folder above it is yielded, and not followed."""
    for entry in os.scandir(folder):
        path = folder / entry.name
        real = os.path.realpath(path)
        # Else a link to a folder above would be followed without end.
        if entry.is_dir() and real not in above:
            yield from _walk(path, (*above, real))
        else:
            yield path


def _why_skipped(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "broken link"
    if path.is_dir():
        return "link to a folder above it"
    if any(part.startswith(".") for part in path.parts[-2:]):
        return "hidden"
    return path.suffix.lower() or "no suffix"
