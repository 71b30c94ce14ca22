"""Images as numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Features, Image
from numpy.typing import NDArray
from torch import Tensor

from train.config.recipe import ImageForm
from train.data.shares import DataError

if TYPE_CHECKING:
    import PIL.Image

MEANT = {
    "1": "L",
    **dict.fromkeys(("P", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
    **dict.fromkeys(("PA", "RGBa"), "RGBA"),
    "La": "LA",
}
"""{mode of an image whose numbers are no brightness: the one that is meant}: a palette, inks, other
kinds of colour.
"""

AS_STORED = ImageForm()
NEEDS_PILLOW = "reading images needs Pillow. Type: pip install pillow"


def pixels(feature: Image, value: Any, own: str, row: int, form: ImageForm = AS_STORED) -> Tensor:
    """(channels, height, width): whole numbers as they are stored, or of 8 bits where `form` has a
    mode.
    """
    try:
        image = feature.decode_example(value)
        image.load()
    except ImportError as error:
        raise DataError(NEEDS_PILLOW) from error
    # PIL raises SyntaxError, OSError, ValueError, DecompressionBombError ...
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        place = _place(value, own)
        raise DataError(
            f"cannot read the image {place} (row {row}): {said}. Is it damaged?"
        ) from error
    if image.mode == "I":
        raise DataError(
            f"{_place(value, own)} (row {row}) is an image of 32-bit whole numbers (mode I), and "
            "nothing says which of them is white. Save it as 16-bit (I;16), as 32-bit floats from "
            "0 to 1 (F), or as 8-bit (L), such as by Image.fromarray((np.array(image) / "
            "LARGEST).astype(np.float32)).save(NAME.tif)"
        )
    if form.mode is not None and image.mode == "F" and not _is_from_0_to_1(image):
        raise DataError(
            f"{_place(value, own)} (row {row}) is an image of floats (mode F) outside 0 to 1, and "
            "nothing says which of them is white. Save it as floats from 0 to 1, or as 8-bit (L), "
            "such as by Image.fromarray((np.array(image) / "
            "LARGEST).astype(np.float32)).save(NAME.tif)"
        )
    try:
        # one of a palette may be transparent
        if image.mode in MEANT and (form.mode is None or image.mode != "P"):
            image = image.convert(MEANT[image.mode])
        if form.mode is not None:
            image = _in_mode(image, form.mode)
        array = np.array(image) if form.size is None else _resized(image, form.size)
    except (OSError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise DataError(
            f"cannot convert the image {_place(value, own)} (row {row}): {said}"
        ) from error
    # a TIFF may have the bytes of its numbers the other way round
    array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _is_from_0_to_1(image: "PIL.Image.Image") -> bool:
    array = np.array(image)
    return bool(((array >= 0) & (array <= 1)).all())  # not where one is NaN


def _in_mode(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
    """L or RGB, 8 bits for each number. PIL itself would cut 16 bits off at 255, and floats too."""
    import PIL.Image  # here: data without images needs no Pillow

    if image.mode == "F":
        image = PIL.Image.fromarray(np.rint(255 * np.array(image)).astype(np.uint8))
    elif image.mode.startswith("I;16"):
        image = PIL.Image.fromarray(np.rint(np.array(image) / 257).astype(np.uint8))
    elif image.has_transparency_data:
        # What lies under transparent places is as a rule black, and so are many drawings: on white
        # they can be seen.
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _resized(image: "PIL.Image.Image", size: Any) -> NDArray[Any]:
    import PIL.Image

    height, width = size if isinstance(size, list) else (size, size)
    how = PIL.Image.Resampling.BILINEAR  # over all pixels that become one
    if not image.mode.startswith("I;16"):
        return np.array(image.resize((width, height), how))
    # PIL itself resizes I;16B wrongly
    wide = PIL.Image.fromarray(np.array(image).astype(np.float32))
    return np.rint(np.array(wide.resize((width, height), how))).astype(np.uint16)


def check_form(form: ImageForm, features: Features | None, columns: list[str]) -> None:
    """Raises DataError where data.image is said of data without images. `columns`: those that are
    read.
    """
    if (
        form == AS_STORED
        or features is None
        or any(isinstance(features[name], Image) for name in columns)
    ):
        return
    raise DataError(
        f"data.image says what images become, and none of the columns that are read holds images "
        f"({', '.join(columns)}). Type: data.image=null"
    )


def one_form(shapes: Sequence[tuple[int, ...]]) -> str:
    """What to type where images (channels, height, width) differ."""
    channels, heights, widths = (set(sizes) for sizes in zip(*shapes, strict=True))
    typed = []
    if len(channels) > 1:
        typed.append(f"data.image.mode={'RGB' if max(channels) > 2 else 'L'}")
    if len(heights) > 1 or len(widths) > 1:
        typed.append(f"'data.image.size=[{min(heights)}, {min(widths)}]'")
    return f"Type: {' '.join(typed)} (or cut them to it in data.transform and data.eval_transform)"


def _place(value: Any, own: str) -> str:
    return str((value or {}).get("path") or f"column {own!r}")
