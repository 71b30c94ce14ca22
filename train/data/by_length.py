"""Texts without most of their padding: micro-batches of similar length, each cut to its longest
text.

Which samples make up a step, in which order, and where a run goes on, stays as it is; and so does
the gradient of a model on which padding has no influence, which is tried before the first step
(train/exactness/additivity.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import IGNORED, Batch, Place
from train.data.lengths import deal, micro_steps, smallest_limit
from train.data.loader import Loader
from train.data.reading import LABELS, Reader, is_text, mask_of
from train.data.rows import Rows
from train.data.shares import DataError, EvaluationSet, RankShare, TrainingSet, assignments

BLOCK = 256  # samples that are measured at a time


@dataclass(frozen=True)
class Padding:
    """What fills texts up to data.max_length."""

    fills: Mapping[str, int]  # by column: a text's token, or IGNORED for a label of each token

    def lengths(self, batch: Batch) -> Tensor:
        """(samples,): places up to the last one that is filled with something else in any column;
        at least 1.
        """
        ends = [_ends(batch[name], fill) for name, fill in self.fills.items()]
        return torch.stack(ends).amax(0).clamp(min=1)

    def cut(self, batch: Batch) -> Batch:
        """The batch without what is padding in all of its samples."""
        longest = int(self.lengths(batch).max())
        return {
            name: c[:, :longest].contiguous() if name in self.fills else c
            for name, c in batch.items()
        }


@dataclass(frozen=True)
class Cut:
    """An evaluation set, each batch cut to its longest text."""

    samples: EvaluationSet
    padding: Padding

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        return map(self.padding.cut, self.samples.batches(ids, size))


@dataclass(frozen=True)
class ByLength:
    """A training set whose micro-batches hold at most `limit` tokens each, padding included."""

    samples: Rows | Loader
    padding: Padding
    # the length of each sample; reads all of them when it is first called
    measured: Callable[[], Ids]
    limit: int
    steps: int | None = None  # after which there are no more

    @property
    def lengths(self) -> Ids:
        return self.measured()

    @property
    def size(self) -> int:
        return self.samples.size

    def first(self, seed: int, count: int) -> Batch:
        """With all of their padding."""
        return self.samples.first(seed, count)

    def trial(self, seed: int, count: int) -> Batch:
        """The same, two at least, the last of them the shortest text that counts: to it padding
        matters most.
        """
        first = sample_ids(self.size, seed, 0, 0, min(max(1, count - 1), self.size))
        shortest = self.lengths.argsort(kind="stable")[:BLOCK]
        labels = self.samples.fetch(shortest).get(LABELS, torch.zeros(len(shortest)))
        counts = (labels != IGNORED).view(len(shortest), -1).any(1)
        return self.samples.fetch(np.append(first, shortest[int(counts.int().argmax())]))

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """As data.shares has it; a rank's micro-batches are as many as pay, and at most those of
        the plan.
        """
        for share in self.samples.read(self._dealt(plan, seed, rank, place, overfit)):
            yield replace(share, trim=self.padding.cut)

    def _dealt(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[tuple[int, Assignment]]:
        largest = max([plan.effective, *(effective for _, effective in plan.stages)])
        alone = replace(plan, world_size=1, micro=largest, accumulation_steps=1)
        for epoch, step in islice(assignments(alone, seed, 0, place, overfit), self.steps):
            lengths = self.lengths[step.ids]
            of_ranks = deal(lengths, plan.world_size, self.limit, plan.micro)
            own = of_ranks[rank]
            yield (
                epoch,
                replace(
                    step,
                    ids=step.ids[np.concatenate(own)],
                    sizes=tuple(map(len, own)),
                    largest=max(sum(map(len, micro_batches)) for micro_batches in of_ranks),
                    filler_ids=step.ids[[lengths.argmin()]],
                ),
            )

    @property
    def is_weighed(self) -> bool:
        return self.samples.is_weighed

    def deferred(self, weighed: Sequence[str]) -> "ByLength":
        """As data.shares has it."""
        return replace(self, samples=self.samples.deferred(weighed))

    def micro_steps(self, plan: BatchPlan) -> tuple[int, int]:
        """No full step has fewer micro-batches of a rank than the first number, nor more than the
        second.
        """
        ascending = np.sort(self.lengths).tolist()
        sizes = [plan.effective, *(effective for _, effective in plan.stages)]
        shortest, longest = ascending[: min(sizes)], ascending[-max(sizes) :]
        filled_up = math.ceil(math.ceil(len(longest) / plan.world_size) / plan.micro)
        needed = [micro_steps(texts, plan.world_size, self.limit) for texts in (shortest, longest)]
        return needed[0], max(needed[1], filled_up)

    def limited(self, plan: BatchPlan, seed: int) -> "ByLength":
        """Its first step only, with the limit that makes the plan's number of micro-batches of it,
        or fewer.
        """
        lengths = np.sort(
            self.lengths[sample_ids(self.size, seed, 0, 0, min(plan.effective, self.size))]
        )
        limit = smallest_limit(lengths.tolist(), plan.accumulation_steps * plan.world_size)
        return replace(self, limit=limit, steps=1)

    def note(self) -> str:
        """For the screen."""
        least, most, mean = self.lengths.min(), self.lengths.max(), self.lengths.mean()
        return f"lengths   {least:,} to {most:,} tokens, {mean:,.4g} on average"


def cut_by_length(
    samples: TrainingSet,
    evaluation: Mapping[str, EvaluationSet],
    reader: Reader,
    types: pa.Schema | None,
    limit: int,
) -> tuple[ByLength, dict[str, EvaluationSet], Padding]:
    """The same sets without most of their padding. Texts to train on are measured when a length is
    first asked for, which reads those that are not in memory once.

    `types` are those of the columns in the data. Raises DataError where there is nothing to cut, or
    nobody knows what.
    """
    if not isinstance(samples, Rows | Loader) or types is None:
        raise DataError(
            "batch.micro_tokens needs the lengths of all texts before the first step, and a stream "
            "does not tell them. Type: batch.micro_tokens=null, and batch.micro=8 or the like"
        )
    padding = _padding(samples.first(0, 1), reader, types)

    @cache
    def lengths() -> Ids:
        every = samples.batches(np.arange(len(samples)), BLOCK)
        return torch.cat([padding.lengths(batch) for batch in every]).numpy()

    cut: dict[str, EvaluationSet] = {name: Cut(rows, padding) for name, rows in evaluation.items()}
    return ByLength(samples, padding, lengths, limit), cut, padding


def _padding(first: Batch, reader: Reader, types: pa.Schema) -> Padding:
    plain = {
        name: own
        for name, own in reader.columns.items()
        if isinstance(own, str) and name not in reader.classes
    }
    texts = [
        name for name, own in plain.items() if own in reader.texts or is_text(types.field(own).type)
    ]
    fills = dict.fromkeys(texts, reader.padding)
    # These say how long a text is, also where it holds the padding's token itself; a transform may
    # drop them.
    fills |= {mask_of(name): 0 for name in texts if mask_of(name) in first}
    if not texts:
        raise DataError(
            "batch.micro_tokens balances texts by their tokens, and none of the columns of the "
            f"task holds text: {', '.join(reader.columns)}. Type: batch.micro_tokens=null, and "
            "batch.micro=8 or the like"
        )
    if reader.tokenizer is not None and reader.tokenizer.pads_left:
        raise DataError(
            "batch.micro_tokens cuts off what fills texts up behind their end, and "
            f"{reader.tokenizer.folder} fills them up in front: its padding_side is left. Type: "
            "batch.micro_tokens=null batch.micro=8 (or the like)"
        )
    size = reader.max_length
    for name in first.keys() - fills.keys():
        if first[name].dim() < 2 or first[name].shape[1] != size:
            continue
        if name != LABELS or first[name].is_floating_point():
            raise DataError(
                f"batch.micro_tokens cuts texts to their length, and {name!r} holds {size} numbers "
                "for each, as many as data.max_length: if they belong to its tokens, nobody knows "
                "what fills them up. Type: batch.micro_tokens=null, and batch.micro=8 or the like "
                "(or another data.max_length)"
            )
        fills[name] = IGNORED
    return Padding(fills)


def in_memory(samples: TrainingSet | EvaluationSet) -> Rows | None:
    """All of a set, uncut, where it is simply held."""
    inside = samples.samples if isinstance(samples, ByLength | Cut) else samples
    return inside if isinstance(inside, Rows) else None


def _ends(column: Tensor, fill: int) -> Tensor:
    """(samples,): the last place that holds something else, counted from 1; 0: none does."""
    holds = (column != fill).flatten(2).any(2) if column.dim() > 2 else column != fill
    return torch.where(holds, torch.arange(1, holds.shape[1] + 1), 0).amax(1)
