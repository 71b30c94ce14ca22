"""The rules for data.*: from {key: value} to (key, what is wrong and what to type)."""

import math
from collections.abc import Iterator

from train.config.problems import Finding, Values, show

CHANNELS = {"L": 1, "RGB": 3}


def _columns(values: Values) -> Iterator[Finding]:
    takes = "it takes the name of a column, or a list of names"
    for name, column in values["data.columns"].items():
        names = column if isinstance(column, list) and column else [column]
        if not all(isinstance(each, str) for each in names):
            yield f"data.columns.{name}", f"got {show(column)}; {takes}"


def _normalize(values: Values) -> Iterator[Finding]:
    # A transform changes the numbers after mean and deviation were found.
    if values["data.normalize"] and values["data.transform"]:
        why = "the numbers would be those of the rows before it"
        fix = "Write data.normalize=false, and scale in the transform"
        yield "data.normalize", f"got true beside data.transform; {why}. {fix}"


def _image_size(values: Values) -> Iterator[Finding]:
    size = values["data.image.size"]
    if size is None:
        return
    sides = size if isinstance(size, list) else [size, size]
    # Not isinstance: true would pass as 1.
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        takes = "it takes a number of pixels, such as 64, or [height, width]"
        yield "data.image.size", f"got {show(size)}; {takes}"


def _image_mode(values: Values) -> Iterator[Finding]:
    mode = values["data.image.mode"]
    if mode is not None and mode not in CHANNELS:
        takes = f"it takes one of {', '.join(CHANNELS)}, or null: as they are"
        yield "data.image.mode", f"got {show(mode)}; {takes}"


def _image_range(values: Values) -> Iterator[Finding]:
    mode = values["data.image.mode"]
    mean = values["data.image.mean"]
    std = values["data.image.std"]
    if len(mean) != len(std):
        got = f"got {show(std)} beside data.image.mean={show(mean)}"
        yield "data.image.std", f"{got}; they take a number a channel each"
    # By 0 the values would be infinite; NaN compares false and is refused with it.
    elif not all(0 < deviation < math.inf for deviation in std):
        yield "data.image.std", f"got {show(std)}; each must be above 0"
    # Without a mode images stay as they are stored, and how many channels they have is seen when
    # they are read.
    channels = CHANNELS.get(str(mode), len(mean))
    if mean and len(mean) != channels:
        why = f"images of mode {mode} have {channels}"
        yield "data.image.mean", f"got {show(mean)}, a number for each channel; {why}"
    if mean and values["data.normalize"]:
        why = "both scale what enters the model. Keep one"
        yield "data.normalize", f"got true beside data.image.mean; {why}"


DATA_RULES = (_columns, _normalize, _image_size, _image_mode, _image_range)
