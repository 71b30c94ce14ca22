"""Which sample goes to which rank and micro-step: data size, seed and plan decide, nothing else."""

import math
from dataclasses import dataclass
from functools import partial

from train.batch.order import Ids, sample_ids
from train.batch.plan import BatchPlan, first_of, share, split_evenly


@dataclass(frozen=True)
class Assignment:
    """One rank's part of an optimizer step."""

    last_of_epoch: bool
    samples: int  # of the whole step, over all ranks
    ids: Ids  # this rank's samples, micro-batch after micro-batch
    sizes: tuple[int, ...]  # of this rank's micro-batches; 0: nothing left, take the filler
    largest: int  # samples of the rank that has the most
    # one sample of the step; its first where micro-batches would be empty, which take it
    filler_ids: Ids


def assign(plan: BatchPlan, seed: int, epoch: int, start: int, rank: int) -> Assignment:
    """This rank's samples of the step that begins at sample `start` of the epoch's order.

    The samples of a step depend on position, seed and effective batch alone. Ranks and
    micro-batches only divide them.
    """
    size = plan.dataset_size
    samples_per_epoch = plan.samples_per_epoch
    assert size is not None
    assert samples_per_epoch is not None
    samples = min(plan.effective, size - start)
    first, sizes = divide(plan, samples, rank)
    # Full steps lie at equal distances, which lets the order compute many of them at once.
    stride = plan.effective if samples == plan.effective else 0
    order = partial(sample_ids, size, seed, epoch, stride=stride)
    ids = order(start + first, start + first + sum(sizes))
    largest = share(samples, 0, plan.world_size)
    if plan.weights:
        largest = max(plan.shares(samples))
    # A filler is any sample of the step; its own first one where it has some, which is read anyway.
    filler_ids = ids[:1]
    if 0 in sizes:
        filler_ids = order(start, start + 1)
    return Assignment(
        last_of_epoch=start + samples >= samples_per_epoch,
        samples=samples,
        ids=ids,
        sizes=sizes,
        largest=largest,
        filler_ids=filler_ids,
    )


def divide(plan: BatchPlan, samples: int, rank: int) -> tuple[int, tuple[int, ...]]:
    """Where a rank's share of a step of `samples` begins, and the sizes of its micro-batches.

    Every rank has equally many of them: where its samples are too few, some are of size 0.
    """
    if plan.weights:
        return _divide_unequally(plan, samples, rank)
    # The tail of an epoch takes as few micro-batches as its largest share needs.
    micro_steps = math.ceil(share(samples, 0, plan.world_size) / plan.micro)
    if samples == plan.effective:
        micro_steps = plan.accumulation_steps
    sizes = split_evenly(share(samples, rank, plan.world_size), micro_steps)
    return first_of(samples, rank, plan.world_size), tuple(sizes)


def _divide_unequally(plan: BatchPlan, samples: int, rank: int) -> tuple[int, tuple[int, ...]]:
    """A micro-batch of a rank is no larger than in a full step."""
    shares = plan.shares(samples)
    steps = plan.accumulation_steps
    if samples != plan.effective:
        limits = [max(1, math.ceil(full / steps)) for full in plan.shares(plan.effective)]
        steps = max(math.ceil(part / most) for part, most in zip(shares, limits, strict=True))
    return sum(shares[:rank]), tuple(split_evenly(shares[rank], steps))
