"""Images of 8 bits stay so until they are on the device: a quarter of the bytes of float32.

The device makes float32 in [0, 1] of them. A transform of the user's is given [0, 1]: where there
is one, they are scaled when they are read.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from train.batch.window import Batch


def pixels_of(batch: Batch, images: frozenset[str]) -> frozenset[str]:
    """Which of these columns are images of 8 bits, not scaled yet."""
    return frozenset(name for name in images if batch[name].dtype == torch.uint8)


def scaled(image: Tensor) -> Tensor:
    """Integer pixels, of 8 or 16 bits, as float32 in [0, 1]; those of a float image as they are."""
    if image.is_floating_point():
        return image
    # A tensor, not a number: on a GPU, torch multiplies by the inverse of a number, which rounds
    # otherwise than a CPU's division.
    largest = torch.iinfo(image.dtype).max
    return image.float() / torch.full((), largest, dtype=torch.float32, device=image.device)


class Scaled(dict[str, Tensor]):
    """A batch whose pixels are scaled when they are asked for; counting labels does not."""

    def __init__(self, batch: Batch, pixels: frozenset[str]) -> None:
        super().__init__(batch)
        self.pixels = pixels

    def __getitem__(self, name: str) -> Tensor:
        column = super().__getitem__(name)
        return scaled(column) if name in self.pixels else column

    def stored(self) -> Batch:
        """As the columns are, not scaled."""
        return {name: dict.__getitem__(self, name) for name in self}

    # dict's own get, items and values go past __getitem__: they would give what is stored.
    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        return [self[name] for name in self]

    # Without it, dict(batch) would copy what is stored, past the methods above.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


def as_a_task_gets_it(batch: Batch, pixels: frozenset[str]) -> Batch:
    """The batch; its pixels are scaled when the task asks for them."""
    if not pixels:
        return batch
    return Scaled(batch, pixels)
