"""What a folder holds: which files are samples, which kind they are of, and which split each one
belongs to.
"""

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
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif"),
    }
)
PACKED = frozenset({".gz", ".bz2", ".xz", ".zst"})
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""{word in the name of a file, or name of a folder: the split that it holds}, as datasets has them.
"""

LITTER = frozenset(
    {".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore", ".gitattributes"}
)
"""What systems leave in folders; nobody takes it for a sample."""
ABOUT = frozenset({"readme", "license", "licence"})
"""Stems of files that say what the others are."""

HOW_SPLITS = "A split is a folder, or a file, with train, validation or test in its name"


@dataclass(frozen=True)
class Found:
    """What lies below a folder; links are followed."""

    files: Sequence[Path]  # that can be samples, in the order of their names
    left_out: Sequence[Path]

    @property
    def note(self) -> str | None:
        if not self.left_out:
            return None
        kinds: dict[str, list[Path]] = {}
        for path in self.left_out:
            kinds.setdefault(_why_left_out(path), []).append(path)
        counts = [f"{len(own):,} x {kind} ({own[0]})" for kind, own in kinds.items()]
        return f"left out  {', '.join(counts)}: no samples, as far as can be told from their names"


def kind_of(path: Path) -> str | None:
    """The name that datasets has for what reads such a file; None: nobody knows."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if not suffixes:
        return None
    return "imagefolder" if suffixes[-1] in IMAGES else FILES.get(suffixes[-1])


def search(folder: Path) -> Found:
    """Hidden files, readmes and what else lies about are no samples."""
    files: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(_walk(folder, (os.path.realpath(folder),)), key=str):
        if path.name.lower() in LITTER or path.name.startswith("._"):
            continue
        if path.stem.lower() in ABOUT:
            continue
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        is_sample = kind_of(path) is not None and not hidden and path.is_file()
        (files if is_sample else left_out).append(path)
    return Found(files, left_out)


def one_kind(files: Sequence[Path], path: Path) -> str:
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(kind_of(file) or "", []).append(file)
    beside = [file for kind, own in kinds.items() for file in own if kind != "imagefolder"]
    if "imagefolder" in kinds and all(file.stem == "metadata" for file in beside):
        return "imagefolder"  # metadata.csv: columns beside the images
    known = f"{', '.join(FILES)}, images ({', '.join(sorted(IMAGES))})"
    if not kinds or "" in kinds:
        unknown = path.is_file() and b"\0" not in path.read_bytes()[:4096]
        table = f"data.source=csv 'data.args={{data_files: \"{path}\"}}'"
        fix = f" If it is a table as text, type: {table}" if unknown else ""
        raise DataError(
            f"data.source={path}: no file that can be read as samples. Known are: {known}.{fix}"
        )
    if len(kinds) > 1:
        counts = ", ".join(
            f"{len(own)} x {own[0].suffix} ({own[0].name})" for own in kinds.values()
        )
        kind, own = max(kinds.items(), key=lambda pair: len(pair[1]))
        if kind == "imagefolder":
            fix = f"Move the {len(beside)} others, from {beside[0]} on, out of it"
        else:
            fix = (
                f"Type: data.source={kind} 'data.args={{data_files: "
                f'"{path}/**/*{own[0].suffix}"}}\''
            )
        raise DataError(
            f"data.source={path} holds files of several kinds: {counts}; one data set is of one "
            f"kind. {fix}"
        )
    return next(iter(kinds))


def tables_by_split(files: Iterable[Path], folder: Path, kind: str) -> dict[str, list[Path]]:
    """{split: its files}. Where no name says otherwise, all of them are to train on."""
    found: dict[str | None, list[Path]] = {}
    for file in files:
        folders = [part.lower() for part in file.relative_to(folder).parts[:-1]]
        words = [*folders, *re.split(r"[-._ 0-9]+", file.name.lower())]
        found.setdefault(next((SPLITS[word] for word in words if word in SPLITS), None), []).append(
            file
        )
    rest = found.pop(None, [])
    named = {split: own for split, own in found.items() if split is not None}
    if not named:
        return {"train": rest}
    if rest:
        every = {**named, "train": [*named.get("train", []), *rest]}
        typed = ", ".join(
            f"{split}: [{', '.join(_quoted(own))}]" for split, own in sorted(every.items())
        )
        raise DataError(
            f"{first_of(rest)} belongs to no split, while others do ({', '.join(named)}). "
            f"{HOW_SPLITS}. To train on it too, type: data.source={kind} 'data.args={{data_files: "
            f"{{{typed}}}}}'"
        )
    return named


def first_of(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"


def counts_by_suffix(files: Sequence[Path]) -> str:
    found: Mapping[str, int] = Counter(file.suffix.lower() or "no suffix" for file in files)
    return ", ".join(f"{count:,} x {suffix}" for suffix, count in found.items())


def _quoted(files: Sequence[Path]) -> list[str]:
    return [f'"{file}"' for file in files]


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """All that lies below; a link to a folder above it is given out as it is."""
    for entry in os.scandir(folder):
        path = folder / entry.name
        real = os.path.realpath(path)
        if entry.is_dir() and real not in above:
            yield from _walk(path, (*above, real))
        else:
            yield path


def _why_left_out(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "broken link"
    if path.is_dir():
        return "link to a folder above it"
    if any(part.startswith(".") for part in path.parts[-2:]):
        return "hidden"
    return path.suffix.lower() or "no suffix"
