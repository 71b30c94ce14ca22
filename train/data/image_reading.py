"""Images as numbers."""

from typing import Any

import numpy as np
import torch
from datasets import Image
from torch import Tensor

from train.data.shares import DataError

MEANT = {
    "1": "L",
    **dict.fromkeys(("P", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"),
    **dict.fromkeys(("PA", "RGBa"), "RGBA"),
    "La": "LA",
}
"""{mode of an image whose numbers are no brightness: the one that is meant}: a palette, inks, other kinds of colour."""


def pixels(feature: Image, value: Any, own: str, row: int) -> Tensor:
    """(channels, height, width), whole numbers as they are stored."""
    try:
        image = feature.decode_example(value)
        array = np.array(image.convert(MEANT[image.mode]) if image.mode in MEANT else image)
    except ImportError as error:
        raise DataError("reading images needs Pillow. Type: pip install pillow") from error
    except Exception as error:  # PIL raises SyntaxError, OSError, ValueError, DecompressionBombError ...
        said = f"{type(error).__name__}: {error}"
        place = _place(value, own)
        raise DataError(f"cannot read the image {place} (row {row}): {said}. Is it damaged?") from error
    if image.mode == "I":
        raise DataError(
            f"{_place(value, own)} (row {row}) is an image of 32-bit whole numbers (mode I), and nothing says which of "
            f"them is white. Save it as 16-bit (I;16), as 32-bit floats from 0 to 1 (F), or as 8-bit (L), such as by "
            f"Image.fromarray((np.array(image) / LARGEST).astype(np.float32)).save(NAME.tif)"
        )
    array = array.astype(array.dtype.newbyteorder("="))  # a TIFF may have the bytes of its numbers the other way round
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _place(value: Any, own: str) -> str:
    return str((value or {}).get("path") or f"column {own!r}")
