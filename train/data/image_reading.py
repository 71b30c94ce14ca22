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

BRIGHTNESS_MODES = {
    "1": "L",
    **dict.fromkeys(("P", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
    **dict.fromkeys(("PA", "RGBa"), "RGBA"),
    "La": "LA",
}
"""{mode whose numbers are no brightness (a palette, inks, other colours): the one to convert to}"""

AS_STORED = ImageForm()
NEEDS_PILLOW = "reading images needs Pillow. Run: pip install pillow"


WHITE_UNKNOWN = "nothing says which of them is white"
TO_FLOATS = (
    "such as by Image.fromarray((np.array(image) / LARGEST).astype(np.float32)).save(NAME.tif)"
)


def read_image(
    feature: Image, value: Any, column: str, row: int, form: ImageForm = AS_STORED
) -> Tensor:
    """(channels, height, width): integers as they are stored, or of 8 bits where `form` has a mode.

    Raises DataError, which names the image.
    """
    name = f"{(value or {}).get('path') or f'column {column!r}'} (row {row})"
    image = _decode(feature, value, name)
    if image.mode == "I":
        raise DataError(
            f"{name} is an image of 32-bit whole numbers (mode I), and {WHITE_UNKNOWN}. Save it as "
            f"16-bit (I;16), as 32-bit floats from 0 to 1 (F), or as 8-bit (L), {TO_FLOATS}"
        )
    if form.mode is not None and image.mode == "F" and not _is_from_0_to_1(image):
        raise DataError(
            f"{name} is an image of floats (mode F) outside 0 to 1, and {WHITE_UNKNOWN}. Save it "
            f"as floats from 0 to 1, or as 8-bit (L), {TO_FLOATS}"
        )
    try:
        array = _converted(image, form)
    except (OSError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot convert the image {name}: {message}") from error
    # The numbers of a TIFF may be of the other byte order.
    array = array.astype(array.dtype.newbyteorder("="))
    if array.ndim == 2:
        return torch.from_numpy(array[None])
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def _decode(feature: Image, value: Any, name: str) -> "PIL.Image.Image":
    try:
        image = feature.decode_example(value)
        # PIL opens without reading the pixels: damage shows here.
        image.load()
    except ImportError as error:
        raise DataError(NEEDS_PILLOW) from error
    # PIL raises SyntaxError, OSError, ValueError, DecompressionBombError ...
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot read the image {name}: {message}. Is it damaged?") from error
    return image


def _converted(image: "PIL.Image.Image", form: ImageForm) -> NDArray[Any]:
    # To another mode goes an image with a palette by itself below: it may be transparent.
    has_palette = image.mode == "P" and form.mode is not None
    if image.mode in BRIGHTNESS_MODES and not has_palette:
        image = image.convert(BRIGHTNESS_MODES[image.mode])
    if form.mode is not None:
        image = _in_mode(image, form.mode)
    if form.size is not None:
        return _resized(image, form.size)
    return np.array(image)


def _is_from_0_to_1(image: "PIL.Image.Image") -> bool:
    array = np.array(image)
    return bool(((array >= 0) & (array <= 1)).all())  # not where one is NaN


def _in_mode(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
    """L or RGB, 8 bits for each number. PIL itself would clip 16 bits and floats at 255."""
    import PIL.Image  # here: data without images needs no Pillow

    if image.mode == "F":
        # From 0 to 1: read_image has refused all others.
        image = PIL.Image.fromarray(np.rint(255 * np.array(image)).astype(np.uint8))
    elif image.mode.startswith("I;16"):
        # 65535 / 257 = 255: all of the 16-bit range, onto all of the 8-bit one.
        image = PIL.Image.fromarray(np.rint(np.array(image) / 257).astype(np.uint8))
    elif image.has_transparency_data:
        # What lies under transparent pixels is as a rule black, and so are many drawings: on white
        # they can be seen.
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _resized(image: "PIL.Image.Image", size: Any) -> NDArray[Any]:
    import PIL.Image

    height, width = size if isinstance(size, list) else (size, size)
    method = PIL.Image.Resampling.BILINEAR  # over all pixels that become one
    if not image.mode.startswith("I;16"):
        return np.array(image.resize((width, height), method))
    # PIL itself resizes I;16B wrongly
    wide = PIL.Image.fromarray(np.array(image).astype(np.float32))
    return np.rint(np.array(wide.resize((width, height), method))).astype(np.uint16)


def check_form(form: ImageForm, features: Features | None, columns: list[str]) -> None:
    """Raises DataError where data.image is set for data without images.

    `columns`: those that are read.
    """
    if form == AS_STORED or features is None:
        return
    if any(isinstance(features[name], Image) for name in columns):
        return
    raise DataError(
        "data.image says what images become, and none of the columns that are read holds images "
        f"({', '.join(columns)}). Set: data.image=null"
    )


def advise_one_form(shapes: Sequence[tuple[int, ...]]) -> str:
    """What to type where images (channels, height, width) differ."""
    channels, heights, widths = (set(sizes) for sizes in zip(*shapes, strict=True))
    settings = []
    if len(channels) > 1:
        # Two channels are grey and transparency.
        mode = "RGB" if max(channels) > 2 else "L"
        settings.append(f"data.image.mode={mode}")
    if len(heights) > 1 or len(widths) > 1:
        settings.append(f"'data.image.size=[{min(heights)}, {min(widths)}]'")
    return (
        f"Set: {' '.join(settings)} (or cut them to it in data.transform and data.eval_transform)"
    )
