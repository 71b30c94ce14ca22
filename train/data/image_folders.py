"""A folder of images as a data set: a folder for each class, below one for each split where there
are splits.

datasets (5.2) looks for images by patterns, which pass over folders that begin with `__`, and takes
the nearest folder for the class. Here the list of files is the data set, and a folder that can be
understood in two ways is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from train.data.folders import HOW_SPLITS, SPLITS, Found, counts_by_suffix, first_of
from train.data.image_reading import NEEDS_PILLOW
from train.data.shares import DataError

Parts = tuple[str, ...]
"""Names of folders, from the source down to a file."""


@dataclass(frozen=True)
class Pictures:
    split: str
    files: Sequence[Path]
    classes: Sequence[str]  # of each file; empty where there are none

    def dataset(self, names: Sequence[str]) -> Dataset:
        """`names`: the classes of all splits, whose places are their numbers."""
        columns: dict[str, list[object]] = {"image": [str(file) for file in self.files]}
        features = {"image": Image()}
        if self.classes:
            numbers = {name: number for number, name in enumerate(names)}
            columns["label"] = [numbers[name] for name in self.classes]
            features["label"] = ClassLabel(names=list(names))
        try:
            return Dataset.from_dict(columns, features=Features(features))
        except ImportError as error:
            raise DataError(NEEDS_PILLOW) from error


def pictures_by_split(found: Found, folder: Path) -> dict[str, Pictures]:
    """Raises DataError where the folders do not say what they are."""
    shared = _shared([file.relative_to(folder).parts[:-1] for file in found.files])
    inside = {file: file.relative_to(folder).parts[len(shared) : -1] for file in found.files}
    splits = _splits(inside, folder.joinpath(*shared))
    if not splits:
        stated = [SPLITS[part.lower()] for part in shared if part.lower() in SPLITS]
        splits = {stated[0] if stated else "train": inside}
    classes = {split: _classes(members, folder) for split, members in splits.items()}
    labelled = {split for split, own in classes.items() if own}
    if labelled and labelled != classes.keys():
        odd = next(split for split in classes if split not in labelled)
        raise DataError(
            f"{folder}: the images of split {odd!r} lie in no class folders "
            f"({first_of(list(splits[odd]))}), those of {', '.join(sorted(labelled))} do. Put them "
            "into folders named like the classes, or train on the others alone, type: "
            f"data.source={_above(next(iter(splits[min(labelled)])), inside, folder)}"
        )
    _check_unread(found, {file.parent for file in found.files} if labelled else set())
    return {
        split: Pictures(split, list(members), classes[split]) for split, members in splits.items()
    }


def class_names_of(splits: Mapping[str, Pictures]) -> list[str]:
    return sorted({name for own in splits.values() for name in own.classes})


def _above(file: Path, inside: Mapping[Path, Parts], folder: Path) -> Path:
    """The folder of a file's split."""
    depth = len(file.relative_to(folder).parts) - len(inside[file])
    return folder.joinpath(*file.relative_to(folder).parts[:depth])


def _shared(folders: Sequence[Parts]) -> Parts:
    """The folders that lie around all files."""
    shared: Parts = ()
    while True:
        tops = {parts[: len(shared) + 1] for parts in folders}
        if len(tops) != 1 or len(next(iter(tops))) == len(shared):
            return shared
        shared = next(iter(tops))


def _splits(inside: Mapping[Path, Parts], folder: Path) -> dict[str, dict[Path, Parts]]:
    """{split: {file: the folders around it, but for that of its split}}; {}: there are
    no splits.
    """
    for level in (0, 1):  # train/cat, or cat/train
        if _is_of_splits(inside, level):
            found: dict[str, dict[Path, Parts]] = {}
            for file, parts in inside.items():
                split = SPLITS[parts[level].lower()]
                found.setdefault(split, {})[file] = (*parts[:level], *parts[level + 1 :])
            return found
    named = [file for file, parts in inside.items() if parts and parts[0].lower() in SPLITS]
    others = [file for file, parts in inside.items() if not parts or parts[0].lower() not in SPLITS]
    is_nested = any(len(inside[file]) > 1 for file in named)
    if named and others and (is_nested or any(not inside[file] for file in others)):
        raise DataError(
            f"{first_of(others)} belongs to no split, while others in {folder} do. {HOW_SPLITS}"
        )
    return {}


def _is_of_splits(inside: Mapping[Path, Parts], level: int) -> bool:
    """Whether the folders at a level are splits. Classes may be called test and control, or valid
    and invalid: images then lie in these very folders, and none is for training.
    """
    if not all(len(parts) > level and parts[level].lower() in SPLITS for parts in inside.values()):
        return False
    is_nested = any(len(parts) > level + 1 for parts in inside.values())
    return is_nested or any(SPLITS[parts[level].lower()] == "train" for parts in inside.values())


def _classes(inside: Mapping[Path, Parts], folder: Path) -> list[str]:
    """The class of each file: its folder. [] where all lie in one folder, with no split
    beside it.
    """
    if not any(inside.values()):
        return []
    flat = [file for file, parts in inside.items() if not parts]
    if flat:
        others = [file for file, parts in inside.items() if parts]
        raise DataError(
            f"{first_of(flat)} lies in no class folder, while others do ({first_of(others)}). "
            f"Put it into the folder of its class, or take it out"
        )
    if all(len(parts) == 1 for parts in inside.values()):
        return [parts[0] for parts in inside.values()]
    # cat/photos and dog/photos: what is the same everywhere is no class.
    levels = range(max(len(parts) for parts in inside.values()))
    same_depth = len({len(parts) for parts in inside.values()}) == 1
    telling = [
        level
        for level in levels
        if same_depth and len({parts[level] for parts in inside.values()}) > 1
    ]
    if len(telling) == 1:
        return [parts[telling[0]] for parts in inside.values()]
    deep = max(inside, key=lambda file: len(inside[file]))
    raise DataError(
        f"{folder}: {deep} lies in folders within folders ({'/'.join(inside[deep])}), and which of "
        "them is the class cannot be told. Give one of them alone, type: "
        f"data.source={folder.joinpath(inside[deep][0])}, or let each class be one folder"
    )


def _check_unread(found: Found, classes: set[Path]) -> None:
    """A class of which nothing can be read would vanish."""
    around = {folder.parent for folder in classes}
    unread: dict[Path, list[Path]] = {}
    for path in found.left_out:
        if not path.is_dir() and not path.parent.name.startswith("."):
            unread.setdefault(path.parent, []).append(path)
    for folder, files in unread.items():
        if (
            folder not in classes
            and folder.parent in around
            and not any(folder in other.parents for other in classes)
        ):
            raise DataError(
                f"{folder} lies beside the folders of the other classes, and holds no image that "
                f"can be read: {counts_by_suffix(files)}. Save them as .png or .jpg, or move the "
                "folder away"
            )
