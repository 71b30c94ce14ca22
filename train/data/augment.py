"""Transforms of training samples, as data.transform takes them; your own look like these."""

import torch
from torch.nn.functional import pad

from train.batch.window import Batch


def crop_and_flip(sample: Batch, generator: torch.Generator) -> Batch:
    """A random crop of the image with 4 pixels of 0 around it, mirrored half of the time.

    inputs (channels, height, width) -> the same. Source: He et al., Deep Residual Learning, 2015,
    section 4.2.
    """
    image = sample["inputs"]
    height, width = image.shape[-2:]
    # With 4 pixels on either side there are 9 places in each direction.
    top = _draw(9, generator)
    left = _draw(9, generator)
    is_mirrored = _draw(2, generator)
    image = pad(image, (4, 4, 4, 4))[..., top : top + height, left : left + width]
    if is_mirrored:
        image = image.flip(-1)
    return sample | {"inputs": image}


def _draw(high: int, generator: torch.Generator) -> int:
    """0 .. high - 1"""
    return int(torch.randint(high, (), generator=generator))
