"""Which sample goes to which rank and micro-step. Pure: data size, seed and plan decide, nothing
else.
"""

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

    The samples of a step depend on place, seed and effective batch alone; ranks and micro-batches
    only divide them.
    """
    size, samples_per_epoch = plan.dataset_size, plan.samples_per_epoch
    assert size is not None
    assert samples_per_epoch is not None
    samples = min(plan.effective, size - start)
    first, sizes = divide(plan, samples, rank)
    order = partial(
        sample_ids, size, seed, epoch, stride=samples if samples == plan.effective else 0
    )
    ids = order(start + first, start + first + sum(sizes))
    return Assignment(
        last_of_epoch=start + samples >= samples_per_epoch,
        samples=samples,
        ids=ids,
        sizes=sizes,
        largest=max(plan.shares(samples)) if plan.weights else share(samples, 0, plan.world_size),
        filler_ids=order(start, start + 1) if 0 in sizes else ids[:1],
    )


def divide(plan: BatchPlan, samples: int, rank: int) -> tuple[int, tuple[int, ...]]:
    """Where a rank's share of a step of `samples` begins, and the sizes of its micro-batches.

    Every rank has equally many of them: where its samples are too few, some are of size 0.
    """
    if plan.weights:
        return _divide_unequally(plan, samples, rank)
    longest = share(samples, 0, plan.world_size)
    micro_steps = (
        plan.accumulation_steps if samples == plan.effective else math.ceil(longest / plan.micro)
    )
    sizes = split_evenly(share(samples, rank, plan.world_size), micro_steps)
    return first_of(samples, rank, plan.world_size), tuple(sizes)


def _divide_unequally(plan: BatchPlan, samples: int, rank: int) -> tuple[int, tuple[int, ...]]:
    """A micro-batch of a rank is no larger than in a full step."""
    own, steps = plan.shares(samples), plan.accumulation_steps
    if samples != plan.effective:
        limits = [max(1, -(-full // steps)) for full in plan.shares(plan.effective)]
        steps = max(-(-part // limit) for part, limit in zip(own, limits, strict=True))
    return sum(own[:rank]), tuple(split_evenly(own[rank], steps))
