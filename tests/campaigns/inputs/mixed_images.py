"""Images of two modes, and of two sizes, in one folder."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.campaigns.inputs.case import Case, Truth
from tests.campaigns.inputs.folders import COLUMNS

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "P": 3, "1": 1, "CMYK": 3, "LA": 2, "I;16": 1, "F": 1}
SIZES = (((4, 4),), ((4, 6), (5, 4)))
COUNT = 2  # of each mode in each class
CLASSES = ("dark", "light")


def cases() -> Iterator[Case]:
    for modes, sizes in itertools.product(itertools.combinations(CHANNELS, 2), SIZES):
        channels = {CHANNELS[mode] for mode in modes}
        wanted = "as they are" if len(channels) == 1 else "RGB" if max(channels) > 2 else "L"
        yield _case(modes, sizes, wanted, ())
    for mode, wanted in itertools.product(CHANNELS, ("L", "RGB")):
        yield _case(
            (mode, "L"), SIZES[1], wanted, (f"data.image.mode={wanted}", "data.image.size=4")
        )


def _case(
    modes: tuple[str, ...], sizes: tuple[tuple[int, int], ...], wanted: str, typed: tuple[str, ...]
) -> Case:
    height, width = (min(side) for side in zip(*sizes, strict=True))
    channels = {"L": 1, "RGB": 3}.get(wanted) or CHANNELS[modes[0]]
    values = [np.full((channels, height, width), _value(*place)) / 255 for place in _places(modes)]
    return Case(
        kind="mixed images",
        name=f"{' and '.join(modes)}, {len(sizes)} sizes, {wanted}{', typed' * bool(typed)}",
        write=partial(_write, modes, sizes),
        overrides=(COLUMNS, *typed),
        truth=Truth(np.stack(values), [CLASSES[kind] for kind, _, _ in _places(modes)]),
    )


def _places(modes: tuple[str, ...]) -> Iterator[tuple[int, int, str]]:
    """(class, number, mode) of each image, in the order of their names."""
    for kind, i in itertools.product(range(2), range(COUNT * len(modes))):
        yield kind, i, modes[i % len(modes)]


def _value(kind: int, i: int, mode: str) -> int:
    return 255 * kind if mode == "1" else 100 * kind + 10 * i


def _write(modes: tuple[str, ...], sizes: tuple[tuple[int, int], ...], folder: Path) -> str:
    for kind, i, mode in _places(modes):
        path = folder / CLASSES[kind] / f"{i}.{'tif' if mode in ('F', 'CMYK') else 'png'}"
        path.parent.mkdir(exist_ok=True)
        _image(_value(kind, i, mode), mode, sizes[i % len(sizes)]).save(path)
    return str(folder)


def _image(value: int, mode: str, size: tuple[int, int]) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full(size, value * 257, np.uint16))
    if mode == "F":
        return Image.fromarray(np.full(size, value / 255, np.float32))
    grey: NDArray[np.uint8] = np.full((*size, 3), value, np.uint8)
    if mode == "P":
        return Image.fromarray(grey).convert("P", palette=Image.Palette.ADAPTIVE)
    return Image.fromarray(grey).convert(mode)
