"""What one optimizer step works on. Pure: torch is named here, but not imported."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""PyTorch's own mark for a label that does not count."""

MASK = "attention_mask"
"""The column (samples, T) that is 1 at the tokens of the text and 0 at its padding."""

Batch = dict[str, "Tensor"]
"""Columns by name, dim 0 of each: samples. `sample_id` (int64) is the position in the data."""


@dataclass(frozen=True)
class Place:
    """The position in the order of the data, in samples: it holds for any number of ranks."""

    epoch: int = 0
    samples: int = 0  # of this epoch, already trained
    seen: int = 0  # of all epochs


@dataclass(frozen=True)
class MicroBatch:
    """What one rank puts through the model at once."""

    batch: Batch  # on the CPU: each moves when its turn comes
    # 0: a filler, a sample of the step whose loss is multiplied by 0. Every rank needs as many
    # micro-steps as the others, or a reduction would wait forever.
    samples: int
    # columns of 0 to 255, of which the device makes float32 in [0, 1]
    pixels: frozenset[str] = frozenset()
    # of a filler's loss; NaN where a sample could not be read: then no rank updates
    filler_factor: float = 0.0


class MicroBatches(Protocol):
    """One rank's micro-batches of a window, in order. They can be iterated over more than once."""

    @property
    def sizes(self) -> Sequence[int]:
        """Samples of each; 0 for a filler. Known without reading any."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[MicroBatch]: ...

    def recut(self, micro: int) -> "MicroBatches":
        """The same samples in micro-batches of at most `micro`, equally many on every rank."""
        ...


@dataclass(frozen=True)
class Window:
    """One rank's part of an optimizer step, and what all ranks agreed on about the whole step."""

    k: int  # the step, counted from 1
    epoch: int  # counted from 0
    micro_batches: MicroBatches  # of this rank; every rank has equally many
    samples: int  # of the step, over all ranks, counted
    # by term, over all ranks: what the sum of a term's losses is divided by
    weights: Mapping[str, float]
    last_of_epoch: bool
    seen: int = 0  # samples, before this step
    # of the step, over all ranks, counted; None: samples are no blocks of tokens
    tokens: int | None = None

    @property
    def is_empty(self) -> bool:
        """No label counts on any rank: there is nothing to train on."""
        return not any(self.weights.values())

    def recut(self, micro: int) -> "Window":
        """The same step in other micro-batches: to retry it in less memory, or for an audit."""
        return replace(self, micro_batches=self.micro_batches.recut(micro))
