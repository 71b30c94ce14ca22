"""Transforms of training samples, as data.transform takes them; your own look like these."""

import torch
from torch.nn.functional import pad

from train.batch.window import Batch


def crop_and_flip(sample: Batch, generator: torch.Generator) -> Batch:
    """A random crop of the image after 4 pixels of 0 were put around it, and half of the time its
    mirror image.

    inputs (channels, height, width) -> the same. Source: He et al., Deep Residual Learning, 2015,
    section 4.2.
    """
    image = sample["inputs"]
    height, width = image.shape[-2:]
    top, left, mirrored = (int(torch.randint(high, (), generator=generator)) for high in (9, 9, 2))
    image = pad(image, (4, 4, 4, 4))[..., top : top + height, left : left + width]
    return sample | {"inputs": image.flip(-1) if mirrored else image}
