"""A folder of images as a data set: a folder for each class, below one for each split, if any.

datasets (5.2) looks for images by patterns, which pass over folders that begin with `__`, and takes
the nearest folder for the class. Here the list of files is the data set, and a folder that can be
understood in two ways is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from train.data.folders import HOW_SPLITS, SPLITS, FolderContents, and_more, counts_by_suffix
from train.data.image_reading import NEEDS_PILLOW
from train.data.shares import DataError

Parts = tuple[str, ...]
"""Names of folders, from the source down to a file."""


@dataclass(frozen=True)
class ImageSplit:
    files: Sequence[Path]
    classes: Sequence[str]  # of each file; empty where there are none

    def dataset(self, names: Sequence[str]) -> Dataset:
        """`names`: the classes of all splits, in the order of their numbers."""
        # Paths alone: datasets reads and decodes an image when its row is asked for.
        columns: dict[str, list[object]] = {"image": list(map(str, self.files))}
        features = {"image": Image()}
        if self.classes:
            numbers = dict(zip(names, range(len(names)), strict=True))
            columns["label"] = [numbers[name] for name in self.classes]
            features["label"] = ClassLabel(names=list(names))
        try:
            return Dataset.from_dict(columns, features=Features(features))
        except ImportError as error:
            raise DataError(NEEDS_PILLOW) from error


def images_by_split(contents: FolderContents, folder: Path) -> dict[str, ImageSplit]:
    """Raises DataError where the folders do not say which class and split an image is of."""
    around = {file: file.relative_to(folder).parts[:-1] for file in contents.files}
    # Folders around all files tell no two of them apart: they are no class.
    around_all = _common_folders(list(around.values()))
    inside = {file: parts[len(around_all) :] for file, parts in around.items()}
    splits = _splits(inside, folder.joinpath(*around_all))
    if not splits:
        splits = {_split_named_in(around_all): inside}
    images = {}
    for split, members in splits.items():
        images[split] = ImageSplit(list(members), _classes(members, folder))
    labelled = [split for split, of_split in images.items() if of_split.classes]
    if labelled and len(labelled) < len(images):
        raise _partly_labelled(splits, labelled, folder)
    if labelled:
        _check_skipped_classes(contents.skipped, {file.parent for file in contents.files})
    return images


def class_names_of(splits: Mapping[str, ImageSplit]) -> list[str]:
    """Of all splits, in the order of their numbers."""
    names: set[str] = set()
    for split in splits.values():
        names.update(split.classes)
    # Sorted, over all splits: the numbers of classes depend on neither the file system nor the
    # split.
    return sorted(names)


def _partly_labelled(
    splits: Mapping[str, Mapping[Path, Parts]], labelled: Sequence[str], folder: Path
) -> DataError:
    unlabelled = next(split for split in splits if split not in labelled)
    first = next(iter(splits[min(labelled)]))
    # The folder of the split: what lies above the class folders of its first file.
    depth = len(first.relative_to(folder).parts) - 1 - len(splits[min(labelled)][first])
    return DataError(
        f"{folder}: the images of split {unlabelled!r} lie in no class folders "
        f"({and_more(list(splits[unlabelled]))}), those of {', '.join(sorted(labelled))} do. Put "
        "them into folders named like the classes, or train on the others alone, set: "
        f"data.source={folder.joinpath(*first.relative_to(folder).parts[:depth])}"
    )


def _split_named_in(folders: Parts) -> str:
    """The split that the first of these folders holds; `train` where none is named like one."""
    for name in folders:
        if name.lower() in SPLITS:
            return SPLITS[name.lower()]
    return "train"


def _common_folders(folders: Sequence[Parts]) -> Parts:
    """The folders that lie around all files."""
    common: Parts = ()
    while True:
        longer = {parts[: len(common) + 1] for parts in folders}
        if len(longer) != 1 or len(next(iter(longer))) == len(common):
            return common
        common = next(iter(longer))


def _splits(inside: Mapping[Path, Parts], folder: Path) -> dict[str, dict[Path, Parts]]:
    """{split: {file: the folders around it, without that of its split}}; {}: no splits."""
    for level in (0, 1):  # train/cat, or cat/train
        if _is_of_splits(inside, level):
            splits: dict[str, dict[Path, Parts]] = {}
            for file, parts in inside.items():
                split = SPLITS[parts[level].lower()]
                splits.setdefault(split, {})[file] = (*parts[:level], *parts[level + 1 :])
            return splits
    within: list[Path] = []
    others: list[Path] = []
    for file, parts in inside.items():
        # A folder that is named like a split may be a class, where its images lie directly in it.
        # Deeper ones, or images beside it, look like splits of which some files are in none.
        is_within = bool(parts) and parts[0].lower() in SPLITS
        (within if is_within else others).append(file)
    deepest_within = max((len(inside[file]) for file in within), default=0)
    has_flat = not all(inside[file] for file in others)
    if within and others and (deepest_within > 1 or has_flat):
        raise DataError(
            f"{and_more(others)} belongs to no split, while others in {folder} do. {HOW_SPLITS}"
        )
    return {}


def _is_of_splits(inside: Mapping[Path, Parts], level: int) -> bool:
    """Whether the folders at a level are splits.

    Classes may be called test and control, or valid and invalid: images then lie in these very
    folders, and none is for training.
    """
    is_nested = False
    splits = set()
    for parts in inside.values():
        if len(parts) <= level or parts[level].lower() not in SPLITS:
            return False
        is_nested = is_nested or len(parts) > level + 1
        splits.add(SPLITS[parts[level].lower()])
    return is_nested or "train" in splits


def _classes(inside: Mapping[Path, Parts], folder: Path) -> list[str]:
    """The class of each file: its folder. [] where all lie in one folder."""
    if not any(inside.values()):
        return []
    flat = [file for file, parts in inside.items() if not parts]
    if flat:
        others = [file for file, parts in inside.items() if parts]
        raise DataError(
            f"{and_more(flat)} lies in no class folder, while others do ({and_more(others)}). "
            "Put it into the folder of its class, or take it out"
        )
    level = _level_of_classes(list(inside.values()))
    if level is None:
        deepest = max(inside, key=lambda file: len(inside[file]))
        raise DataError(
            f"{folder}: {deepest} lies in folders within folders ({'/'.join(inside[deepest])}), "
            "and which of them is the class is not clear. Give one of them alone, set: "
            f"data.source={folder.joinpath(inside[deepest][0])}, or let each class be one folder"
        )
    return [parts[level] for parts in inside.values()]


def _level_of_classes(folders: Sequence[Parts]) -> int | None:
    """The only level whose names differ, as cat/photos and dog/photos; None: there is none."""
    depths = {len(parts) for parts in folders}
    if depths == {1}:
        return 0
    # The same level means another thing at another depth.
    if len(depths) > 1:
        return None
    varying = []
    for level in range(max(depths)):
        if len({parts[level] for parts in folders}) > 1:
            varying.append(level)
    return varying[0] if len(varying) == 1 else None


def _check_skipped_classes(skipped: Sequence[Path], class_folders: set[Path]) -> None:
    """Raises DataError for a class of which nothing can be read: it would vanish."""
    # Images that nobody can read, such as .heic, are skipped: a class of these alone would be
    # missing from the numbers of the others.
    around: set[Path] = set()
    above: set[Path] = set()
    for class_folder in class_folders:
        around.add(class_folder.parent)
        above.update(class_folder.parents)
    by_folder: dict[Path, list[Path]] = {}
    for path in skipped:
        if not path.is_dir() and not path.parent.name.startswith("."):
            by_folder.setdefault(path.parent, []).append(path)
    for folder, files in by_folder.items():
        is_beside_classes = folder.parent in around
        if is_beside_classes and folder not in class_folders and folder not in above:
            raise DataError(
                f"{folder} lies beside the folders of the other classes, and holds no image that "
                f"can be read: {counts_by_suffix(files)}. Save them as .png or .jpg, or move the "
                "folder away"
            )
