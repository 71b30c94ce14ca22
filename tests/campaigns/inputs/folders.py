"""Folders of images: names of classes, where splits lie, what lies beside them, modes of images."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.campaigns.inputs.case import Case, Truth
from train.data.folders import SPLITS

COLUMNS = "data.columns={inputs: image, labels: label}"
COUNT = 3  # images of a class

CLASSES: Mapping[str, Sequence[str]] = {
    "plain": ("cat", "dog"),
    "underscores": ("__background__", "cat"),
    "test and control": ("control", "test"),
    "valid and invalid": ("invalid", "valid"),
    "a train": ("bus", "train"),
    "train, test": ("other", "test", "train"),
    "brackets": ("a[1]", "a1"),
    "patterns": ("a*", "ab"),
    "blanks": ("big cat", "small cat"),
    "umlauts": ("größer", "kleiner"),
    "numbers": ("1", "10", "2"),
    "capitals": ("Cat", "DOG"),
    "like files": ("a.png", "b.png"),
}

LAYOUTS: Mapping[str, str] = {
    "classes": "{name}",
    "one deeper": "data/{name}",
    "two deeper": "x/data/{name}",
    "splits": "{split}/{name}",
    "splits one deeper": "data/{split}/{name}",
    "splits in classes": "{name}/{split}",
    "photos in classes": "{name}/photos",
    "photos in classes in splits": "{split}/{name}/photos",
}

BESIDE: Mapping[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "readme": lambda folder: (folder / "README.md").write_text("what"),
    "litter": lambda folder: (folder / ".DS_Store").write_text("x"),
    "a script": lambda folder: (folder / "make.py").write_text("x"),
    "checkpoints": lambda folder: _picture(folder / ".ipynb_checkpoints" / "0.png", 9, "RGB"),
    "a hidden copy": lambda folder: _picture(folder / "._0.png", 9, "RGB"),
    "an empty class": lambda folder: (folder / "empty").mkdir(),
}

MODES = ("L", "RGB", "RGBA", "P", "1", "CMYK", "LA", "I;16", "I;16B", "F")
SUFFIXES = ("png", "jpg", "JPEG", "bmp", "gif", "tif", "webp", "ppm")


def cases() -> Iterator[Case]:
    for name in CLASSES:
        for layout in LAYOUTS:
            yield _case(name, layout, "nothing", "RGB", "png")
    for beside, layout in itertools.product(BESIDE, ("classes", "splits")):
        yield _case("plain", layout, beside, "RGB", "png")
    for mode in MODES:
        yield _case(
            "plain", "classes", "nothing", mode, "tif" if mode in ("I;16B", "F", "CMYK") else "png"
        )
    for suffix in SUFFIXES:
        yield _case("plain", "classes", "nothing", "RGB", suffix)


def linked() -> Iterator[Case]:
    """Classes that are links to folders elsewhere."""
    case = _case("plain", "classes", "nothing", "RGB", "png")
    yield Case("folder", "links to classes", partial(_links, case), case.overrides, case.truth)


def _case(names: str, layout: str, beside: str, mode: str, suffix: str) -> Case:
    classes = CLASSES[names]
    order = sorted(classes)
    values = [_value(classes.index(name), i) for name in order for i in range(COUNT)]
    labels = [name for name in order for _ in range(COUNT)]
    if layout == "classes":  # by the whole path, in which a folder's name is followed by a slash
        pairs = sorted((f"{name}/{i}", name, i) for name in classes for i in range(COUNT))
        values = [_value(classes.index(name), i) for _, name, i in pairs]
        labels = [name for _, name, _ in pairs]
    inputs = [_pixels(value, mode) for value in values]
    has_splits = "split" in layout
    return Case(
        kind="folder",
        name=f"{names}, {layout}, {beside}, {mode}, {suffix}",
        write=partial(_write, classes, LAYOUTS[layout], beside, mode, suffix),
        overrides=(COLUMNS, *(("data.eval_split=test",) if has_splits else ())),
        truth=Truth(np.stack(inputs), labels),
        may_be_refused=layout == "photos in classes"
        and any(name in SPLITS for name in classes),  # a split, or a class?
    )


def _write(
    classes: Sequence[str], layout: str, beside: str, mode: str, suffix: str, folder: Path
) -> str:
    splits = ("train", "test") if "{split}" in layout else ("train",)
    for split, (number, name) in itertools.product(splits, enumerate(classes)):
        for i in range(COUNT if split == "train" else 1):
            path = folder / layout.format(split=split, name=name) / f"{i}.{suffix}"
            _picture(path, _value(number, i), mode)
    BESIDE[beside](folder)
    return str(folder)


def _links(case: Case, folder: Path) -> str:
    case.write(folder / "real")
    (folder / "own").mkdir()
    for name in CLASSES["plain"]:
        (folder / "own" / name).symlink_to(folder / "real" / name)
    return str(folder / "own")


def _value(number: int, i: int) -> int:
    return 100 * (number % 2) + 50 * (number // 2) + 10 * i


def _picture(path: Path, value: int, mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode.startswith("I;16"):
        kind = ">u2" if mode.endswith("B") else "<u2"
        image = Image.frombytes(mode, (4, 4), np.full((4, 4), value * 257, kind).tobytes())
    elif mode == "F":
        image = Image.fromarray(np.full((4, 4), value / 255, np.float32))
    else:
        grey = np.full((4, 4, 3), value, np.uint8)
        image = Image.fromarray(grey).convert(mode)
    options = {"quality": 100} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    image.save(path, **({"lossless": True} if path.suffix == ".webp" else options))


def _pixels(value: int, mode: str) -> NDArray[np.float64]:
    """(channels, height, width), as PIL itself converts them to what is meant."""
    if mode in ("I;16", "I;16B", "F"):
        return np.full((1, 4, 4), value / 255)
    image = Image.fromarray(np.full((4, 4, 3), value, np.uint8)).convert(mode)
    array = np.array(image.convert({"P": "RGB", "CMYK": "RGB", "1": "L"}.get(mode, mode))) / 255
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
