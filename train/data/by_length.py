"""Micro-batches of texts of similar length, each cut to its longest text.

Which samples make up a step, in which order, and where a run resumes, stays as it is; and so does
the gradient of a model on which padding has no influence, which is tried before the first step
(train/exactness/additivity.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

import numpy as np
import pyarrow as pa
import torch

from train.batch import Assignment, BatchPlan, sample_ids
from train.batch.order import Ids
from train.batch.window import IGNORED, Batch, Place
from train.data.lengths import deal, micro_steps, smallest_limit
from train.data.loader import Loader
from train.data.padding import CutEvaluation, Padding, find_padding
from train.data.protocols import EvaluationSet, TrainingSet, assignments, step_sizes
from train.data.reading import LABELS, Reader
from train.data.rows import Rows
from train.data.shares import DataError, RankShare

BLOCK = 256  # samples that are measured at a time


@dataclass(frozen=True)
class ByLength(TrainingSet):
    """A training set whose micro-batches hold at most `limit` tokens each, padding included."""

    samples: Rows | Loader
    padding: Padding
    # The length of each sample; reads all of them when it is first called.
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
        """The first samples, and the shortest text with a label that counts.

        Padding matters most to that one.
        """
        # One less, so that with the shortest text there are `count`.
        first = sample_ids(self.size, seed, 0, 0, min(max(1, count - 1), self.size))
        # The shortest text may have no label that counts, such as an empty one: its padding would
        # then show in no gradient.
        shortest = self.lengths.argsort(kind="stable")[:BLOCK]
        labels = self.samples.fetch(shortest).get(LABELS, torch.zeros(len(shortest)))
        counts = (labels != IGNORED).view(len(shortest), -1).any(1)
        return self.samples.fetch(np.append(first, shortest[int(counts.int().argmax())]))

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """A rank has as many micro-batches as pay, and at most those of the plan."""
        for share in self.samples.read(self._dealt(plan, seed, rank, position, overfit)):
            yield replace(share, trim=self.padding.cut)

    def _dealt(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[tuple[int, Assignment]]:
        """(epoch, this rank's samples) of each step, dealt out by length."""
        largest = max(step_sizes(plan))
        # The plan's own order, all of a step at once: who takes which of its texts is decided here.
        undivided = replace(plan, world_size=1, micro=largest, accumulation_steps=1)
        steps = assignments(undivided, seed, 0, position, overfit)
        for epoch, step in islice(steps, self.steps):
            yield epoch, self._dealt_to(rank, step, plan)

    def _dealt_to(self, rank: int, step: Assignment, plan: BatchPlan) -> Assignment:
        """A rank's part of all samples of a step."""
        # Every rank deals out the texts of all: so they agree without a message.
        lengths = self.lengths[step.ids]
        ranks = deal(lengths, plan.world_size, self.limit, plan.micro)
        samples_of_ranks = [sum(map(len, micro_batches)) for micro_batches in ranks]
        micro_batches = ranks[rank]
        return replace(
            step,
            ids=step.ids[np.concatenate(micro_batches)],
            sizes=tuple(map(len, micro_batches)),
            largest=max(samples_of_ranks),
            # A filler is computed and counts nothing: the shortest text costs least.
            filler_ids=step.ids[[lengths.argmin()]],
        )

    @property
    def is_weighed(self) -> bool:
        return self.samples.is_weighed

    def deferred(self, weighed: Sequence[str]) -> "ByLength":
        return replace(self, samples=self.samples.deferred(weighed))

    def one_step(self, plan: BatchPlan, seed: int) -> "ByLength":
        """The smallest limit under which the step needs no more micro-batches than the plan."""
        ids = sample_ids(self.size, seed, 0, 0, min(plan.effective, self.size))
        lengths = np.sort(self.lengths[ids]).tolist()
        limit = smallest_limit(lengths, plan.accumulation_steps * plan.world_size)
        return replace(self, limit=limit, steps=1)

    def micro_steps(self, plan: BatchPlan) -> tuple[int, int]:
        """Bounds: those of the shortest texts that may meet in a step, and of the longest."""
        ascending = np.sort(self.lengths).tolist()
        sizes = step_sizes(plan)
        shortest = ascending[: min(sizes)]
        longest = ascending[-max(sizes) :]
        # Never more than the plan has, or than the limit asks for: train.data.lengths.deal.
        of_plan = math.ceil(math.ceil(len(longest) / plan.world_size) / plan.micro)
        fewest = micro_steps(shortest, plan.world_size, self.limit)
        most = micro_steps(longest, plan.world_size, self.limit)
        return fewest, max(most, of_plan)

    @property
    def notes(self) -> tuple[str, ...]:
        lengths = self.lengths
        line = (
            f"lengths   {lengths.min():,} to {lengths.max():,} tokens, {lengths.mean():,.4g} on "
            "average"
        )
        return (line,)

    @property
    def trim(self) -> Callable[[Batch], Batch]:
        return self.padding.cut

    @property
    def innermost(self) -> TrainingSet:
        return self.samples


def cut_by_length(
    samples: TrainingSet, reader: Reader, types: pa.Schema | None, limit: int
) -> ByLength:
    """The same set without most of its padding.

    Texts are measured when a length is first asked for, which reads those that are not in memory
    once. `types`: of the columns in the data. Raises DataError where there is nothing to cut, or it
    is not known what.
    """
    if not isinstance(samples, Rows | Loader) or types is None:
        raise DataError(
            "batch.micro_tokens needs the lengths of all texts before the first step, and a stream "
            "does not have them. Set: batch.micro_tokens=null, and batch.micro=8 or the like"
        )
    padding = find_padding(samples.first(0, 1), reader, types)

    @cache
    def lengths() -> Ids:
        batches = samples.batches(np.arange(len(samples)), BLOCK)
        return torch.cat([padding.lengths(batch) for batch in batches]).numpy()

    return ByLength(samples=samples, padding=padding, measured=lengths, limit=limit)


def in_memory(samples: TrainingSet | EvaluationSet) -> Rows | None:
    """All of a set, with all padding, where it is simply held in memory."""
    if isinstance(samples, ByLength | CutEvaluation):
        return in_memory(samples.samples)
    return samples if isinstance(samples, Rows) else None
