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

SMALLER_PART = 3 / 8
"""Of a micro-batch. Not a half: some mistakes, such as a mean of means, cancel in equal parts."""

Trim = Callable[[Batch], Batch]
"""Cuts padding off a micro-batch."""

Fetch = Callable[[Ids], Batch]


@dataclass(frozen=True)
class InMemory:
    """Micro-batches that are kept in memory."""

    micro_batches: Sequence[MicroBatch]

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)

    def backwards(self) -> "InMemory":
        return InMemory(self.micro_batches[::-1])


@dataclass(frozen=True)
class MicroBatchIds:
    """A micro-batch without its data, to be sent to other ranks."""

    ids: Ids
    samples: int  # 0: a filler


@dataclass(frozen=True)
class FetchedById:
    """Micro-batches of any rank, each fetched when its turn comes."""

    micro_batch_ids: Sequence[MicroBatchIds]
    fetch: Fetch

    def __iter__(self) -> Iterator[MicroBatch]:
        for micro_batch in self.micro_batch_ids:
            yield MicroBatch(self.fetch(micro_batch.ids), micro_batch.samples)

    def backwards(self) -> "FetchedById":
        return replace(self, micro_batch_ids=self.micro_batch_ids[::-1])


@dataclass(frozen=True)
class ReadInTurn:
    """Micro-batches of this rank whose samples are read once more, when their turn comes."""

    micro_batches: MicroBatches

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)

    def backwards(self) -> "ReadInTurn | InMemory":
        # Reading backwards needs all of them in memory. Single samples cannot be divided: another
        # order is all that there is. For others to be divided is enough.
        if max(self.micro_batches.sizes) == 1:
            return InMemory(list(self)[::-1])
        return self


MicroBatchSource = FetchedById | InMemory | ReadInTurn


@dataclass(frozen=True, kw_only=True)
class StepSamples:
    """The micro-batches of a step. All ranks ask for them together."""

    own: MicroBatchSource
    """Of this rank."""
    next: MicroBatchSource
    """Of the rank after this one; on one rank its own."""
    largest: int
    """Samples of the largest micro-batch of any rank."""
    trim: Trim | None

    def other_cut(self, window: Window) -> Window:
        """The step once more: each micro-batch of the next rank in two parts, the last one first.

        Not a free cut: so no more samples or tokens are put through at once than in the step
        itself. Equally many on every rank.
        """
        # Of the next rank: a device that computes wrong may give the same wrong number for its own
        # samples in any cut.
        micro_batches = OtherCut(
            source=self.next.backwards(),
            count=len(window.micro_batches),
            parts=2 if self.largest > 1 else 1,
            seed=window.k,
            trim=self.trim,
        )
        return replace(window, micro_batches=micro_batches)


@dataclass(frozen=True, kw_only=True)
class OtherCut:
    """As batch.window.MicroBatches, but for the sizes, which are known when they have been read."""

    source: MicroBatchSource
    count: int  # of micro-batches before they are divided
    parts: int  # of each: 1 or 2
    seed: int  # of the order of samples
    trim: Trim | None

    @property
    def sizes(self) -> Sequence[int]:
        return [micro_batch.samples for micro_batch in self]

    def __len__(self) -> int:
        return self.count * self.parts

    def recut(self, micro: int) -> "OtherCut":
        raise NotImplementedError("an audit's cut is not cut again")

    def __iter__(self) -> Iterator[MicroBatch]:
        # A generator of its own: the global ones stand where the step's draws begin.
        generator = torch.Generator().manual_seed(self.seed)
        for micro_batch in self.source:
            # Shuffled: samples that are coupled with their neighbours come into different parts.
            order = torch.randperm(micro_batch.samples, generator=generator)
            for indices in self._divided(order):
                yield self._part(micro_batch, indices)

    def _divided(self, order: Tensor) -> Sequence[Tensor]:
        """Always so many parts, one of them empty where there is one sample or a filler."""
        if self.parts == 1:
            return [order]
        smaller = max(1, int(len(order) * SMALLER_PART)) if len(order) > 1 else 0
        return order.split([len(order) - smaller, smaller])

    def _part(self, micro_batch: MicroBatch, indices: Tensor) -> MicroBatch:
        """A filler where there are no indices: any sample, which counts 0."""
        if not len(indices):
            selected = torch.zeros(1, dtype=torch.int64)
        else:
            selected = indices
        batch = {name: column[selected] for name, column in micro_batch.batch.items()}
        if self.trim is not None:
            # Each part to its own longest text, as in training: a model that sees padding then
            # gives another gradient.
            batch = self.trim(batch)
        return replace(micro_batch, batch=batch, samples=len(indices))


def samples_of(window: Window, data: TrainingSet, ranks: Ranks) -> StepSamples:
    """Fetched by their ids where the data allows that; those of streams are sent over gloo."""
    trim = data.trim
    # Past what checks labels and the like on the way: these samples have passed it in this very
    # step.
    inner: Any = data.innermost
    if ranks.world_size == 1:
        return _samples_of_one_rank(window, inner.is_deferred, trim)
    fetch = _fetch_of(inner, window.epoch)
    if fetch is None:
        return _sent_samples(window, ranks, trim)
    return _fetched_samples(window, ranks, fetch, trim)


def _samples_of_one_rank(window: Window, is_deferred: bool, trim: Trim | None) -> StepSamples:
    source: MicroBatchSource
    if is_deferred:
        source = ReadInTurn(window.micro_batches)
    else:
        source = InMemory(list(window.micro_batches))
    largest = max(window.micro_batches.sizes)
    return StepSamples(own=source, next=source, largest=largest, trim=trim)


def _sent_samples(window: Window, ranks: Ranks, trim: Trim | None) -> StepSamples:
    largest = max(ranks.gather(max(window.micro_batches.sizes)))
    following = (ranks.rank + 1) % ranks.world_size
    own = []
    of_next_rank = []
    # One micro-batch at a time: gather brings those of all ranks, of which one is kept.
    for micro_batch in window.micro_batches:
        own.append(micro_batch)
        of_next_rank.append(ranks.gather(with_own_memory(micro_batch))[following])
    return StepSamples(own=InMemory(own), next=InMemory(of_next_rank), largest=largest, trim=trim)


def _fetched_samples(window: Window, ranks: Ranks, fetch: Fetch, trim: Trim | None) -> StepSamples:
    largest = max(ranks.gather(max(window.micro_batches.sizes)))
    own_ids = []
    for micro_batch in window.micro_batches:
        ids = micro_batch.batch["sample_id"].numpy()
        own_ids.append(MicroBatchIds(ids, micro_batch.samples))
    # Ids alone: the data of all ranks would be as large as the whole step, on each of them.
    ids_of_ranks = ranks.gather(own_ids)

    def fetch_trimmed(ids: Ids) -> Batch:
        batch = fetch(ids)
        return batch if trim is None else trim(batch)

    following = (ranks.rank + 1) % ranks.world_size
    return StepSamples(
        own=FetchedById(ids_of_ranks[ranks.rank], fetch_trimmed),
        next=FetchedById(ids_of_ranks[following], fetch_trimmed),
        largest=largest,
        trim=trim,
    )


def _fetch_of(data: Any, epoch: int) -> Fetch | None:
    """None for streams, whose samples cannot be fetched by id."""
    if isinstance(data, Rows):
        return data.fetch
    if isinstance(data, Loader):
        # Fetched here as the task gets them, in [0, 1], not as the bytes that go to a device.
        scaled = replace(data, keeps_pixels=False)
        return lambda ids: scaled.fetch(ids, epoch)
    return None


def with_own_memory(micro_batch: MicroBatch) -> MicroBatch:
    """Not as views: what lies around a view in memory would be sent too."""
    batch = {name: column.clone() for name, column in micro_batch.batch.items()}
    return replace(micro_batch, batch=batch)
