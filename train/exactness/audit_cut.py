"""Another cut of a step: other sizes, another order, and on several ranks each other's samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train.batch.order import Ids
from train.batch.window import Batch, MicroBatch, MicroBatches, Window
from train.data import TrainingSet
from train.data.loader import Loader
from train.data.rows import Rows
from train.distributed.ranks import Ranks

SMALLER = 3 / 8
"""Of a micro-batch, the part that is put through by itself."""


@dataclass(frozen=True)
class Named:
    """A micro-batch without its data."""

    ids: Ids
    samples: int  # 0: a filler


@dataclass(frozen=True)
class Fetched:
    """Micro-batches of any rank, each read when its turn comes."""

    named: Sequence[Named]
    fetch: Callable[[Ids], Batch]

    def __iter__(self) -> Iterator[MicroBatch]:
        for each in self.named:
            yield MicroBatch(self.fetch(each.ids), each.samples)

    def backwards(self) -> "Fetched":
        return replace(self, named=self.named[::-1])


@dataclass(frozen=True)
class Held:
    """Micro-batches in memory."""

    micro_batches: Sequence[MicroBatch]

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)

    def backwards(self) -> "Held":
        return Held(self.micro_batches[::-1])


@dataclass(frozen=True)
class Reread:
    """Those of this rank, each read once more when its turn comes; in their own order."""

    micro_batches: MicroBatches

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)

    def backwards(self) -> "Reread | Held":
        """Single samples can only be put in another order; of others a part is enough."""
        return Held(list(self)[::-1]) if max(self.micro_batches.sizes) == 1 else self


Whole = Fetched | Held | Reread


@dataclass(frozen=True)
class Samples:
    """The micro-batches of a window: of this rank, and of the one after it. All ranks ask for them
    together.
    """

    own: Whole
    next: Whole
    largest: int  # samples of a micro-batch of any rank
    trim: Callable[[Batch], Batch] | None  # cuts padding off a micro-batch

    def other_cut(self, window: Window) -> Window:
        """The step once more: each micro-batch of the next rank in two parts, the last one first.

        So no more samples or tokens are put through at once than in the step itself. Equally many
        on every rank.
        """
        count = len(window.micro_batches)
        parts = 2 if self.largest > 1 else 1
        return replace(
            window, micro_batches=OtherCut(self.next.backwards(), count, parts, window.k, self.trim)
        )


@dataclass(frozen=True)
class OtherCut:
    """As batch.window.MicroBatches has it, but for the sizes, which only show as they come."""

    whole: Whole
    count: int
    parts: int
    seed: int
    trim: Callable[[Batch], Batch] | None

    @property
    def sizes(self) -> Sequence[int]:
        return [micro_batch.samples for micro_batch in self]

    def __len__(self) -> int:
        return self.count * self.parts

    def recut(self, micro: int) -> "OtherCut":
        raise NotImplementedError("an audit's cut is not cut again")

    def __iter__(self) -> Iterator[MicroBatch]:
        generator = torch.Generator().manual_seed(self.seed)
        for micro_batch in self.whole:
            order = torch.randperm(micro_batch.samples, generator=generator)
            for places in self._divided(order):
                yield self._part(micro_batch, places)

    def _divided(self, order: Tensor) -> Sequence[Tensor]:
        if self.parts == 1:
            return [order]
        smaller = max(1, int(len(order) * SMALLER)) if len(order) > 1 else 0
        return order.split([len(order) - smaller, smaller])

    def _part(self, micro_batch: MicroBatch, places: Tensor) -> MicroBatch:
        """A filler where there are no places."""
        index = places if len(places) else torch.zeros(1, dtype=torch.int64)
        batch = {name: column[index] for name, column in micro_batch.batch.items()}
        return replace(
            micro_batch, batch=self.trim(batch) if self.trim else batch, samples=len(places)
        )


def samples_of(window: Window, data: TrainingSet, ranks: Ranks) -> Samples:
    """By their ids where they can be fetched again; else, of streams, sent by gloo."""
    trim = data.trim
    inside: Any = data.innermost
    if ranks.world_size == 1:
        whole = (
            Reread(window.micro_batches) if inside.is_deferred else Held(list(window.micro_batches))
        )
        return Samples(whole, whole, max(window.micro_batches.sizes), trim)
    largest = max(ranks.gather(max(window.micro_batches.sizes)))
    following = (ranks.rank + 1) % ranks.world_size
    fetch = _fetch_of(inside, window.epoch)
    if fetch is None:
        own, sent = [], []
        for micro_batch in window.micro_batches:
            own.append(micro_batch)
            sent.append(ranks.gather(_alone(micro_batch))[following])
        return Samples(Held(own), Held(sent), largest, trim)
    named = ranks.gather(
        [Named(each.batch["sample_id"].numpy(), each.samples) for each in window.micro_batches]
    )
    fetched = [Fetched(of_rank, fetch if trim is None else _then(fetch, trim)) for of_rank in named]
    return Samples(fetched[ranks.rank], fetched[following], largest, trim)


def _fetch_of(data: Any, epoch: int) -> Callable[[Ids], Batch] | None:
    if isinstance(data, Rows):
        return data.fetch
    if isinstance(data, Loader):
        scaled = replace(data, keeps_pixels=False)
        return lambda ids: scaled.fetch(ids, epoch)
    return None


def _then(fetch: Callable[[Ids], Batch], trim: Callable[[Batch], Batch]) -> Callable[[Ids], Batch]:
    return lambda ids: trim(fetch(ids))


def _alone(micro_batch: MicroBatch) -> MicroBatch:
    """Without what lies around it in memory, which would be sent too."""
    return replace(
        micro_batch, batch={name: column.clone() for name, column in micro_batch.batch.items()}
    )
