"""What one optimizer step works on."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

IGNORED = -100
"""PyTorch's own mark for a label that does not count."""

Batch = dict[str, Tensor]
"""Columns by name; dim 0 of every tensor: samples. `sample_id` (int64) is the sample's place in the data."""


@dataclass(frozen=True)
class Place:
    """How far training has come in the order of the data. Counted in samples: it holds for any number of ranks."""

    epoch: int = 0
    samples: int = 0  # of this epoch, already trained


@dataclass(frozen=True)
class MicroBatch:
    """What one rank puts through the model at once."""

    batch: Batch  # on the CPU: each moves when its turn comes
    samples: int  # 0: a filler, a sample of the step that counts nowhere, so that every rank has equally many steps


@dataclass(frozen=True)
class Window:
    """One rank's part of an optimizer step, and what all ranks agreed on about the whole."""

    k: int  # the step, counted from 1
    epoch: int  # counted from 0
    micro_batches: tuple[MicroBatch, ...]  # of this rank; every rank has equally many
    samples: int  # of the step, over all ranks, counted
    weights: Mapping[str, float]  # by term, over all ranks: what the sum of a term's losses is divided by
    last_of_epoch: bool

    @property
    def is_empty(self) -> bool:
        """No label counts on any rank: there is nothing to train on."""
        return not any(self.weights.values())
