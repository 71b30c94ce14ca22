"""Which sample goes to which rank and micro-step of step k. Pure: data size, seed and plan decide, nothing else."""

import math
from dataclasses import dataclass

from train.batch.order import Ids, sample_ids
from train.batch.plan import BatchPlan, first_of, parts, share


@dataclass(frozen=True)
class Assignment:
    """One rank's part of an optimizer step."""

    k: int  # the step, counted from 1
    epoch: int  # counted from 0
    last_of_epoch: bool
    samples: int  # of the whole step, over all ranks
    ids: Ids  # this rank's samples, micro-batch after micro-batch
    sizes: tuple[int, ...]  # of this rank's micro-batches; 0: nothing left, take the filler
    filler_ids: Ids  # one sample of the step, for the micro-batches that would be empty


def assign(plan: BatchPlan, seed: int, k: int, rank: int) -> Assignment:
    """This rank's samples of step k = 1, 2, ..., in as many micro-batches as every other rank has.

    The samples of a step depend on k, seed and the effective batch alone; ranks and micro-batches only divide them.
    """
    epoch, index = divmod(k - 1, plan.steps_per_epoch)
    start = index * plan.effective
    samples = min(plan.effective, plan.dataset_size - start)
    shares = [share(samples, r, plan.world_size) for r in (0, rank)]
    offset = start + first_of(samples, rank, plan.world_size)
    micro_steps = plan.accumulation_steps if samples == plan.effective else math.ceil(shares[0] / plan.micro)
    return Assignment(
        k=k,
        epoch=epoch,
        last_of_epoch=index == plan.steps_per_epoch - 1,
        samples=samples,
        ids=sample_ids(plan.dataset_size, seed, epoch, offset, offset + shares[1]),
        sizes=tuple(parts(shares[1], micro_steps)),
        filler_ids=sample_ids(plan.dataset_size, seed, epoch, start, start + 1),
    )
