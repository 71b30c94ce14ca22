"""batch.shares: ranks of unequal speed take unequal parts of the same step."""

import math
from collections.abc import Sequence
from dataclasses import replace

from train.batch import BatchPlan, PlanError, ranks
from train.batch.plan import in_proportion
from train.config.recipe import Batch


def unequal(
    plan: BatchPlan,
    weights: Sequence[int],
    micro: int | Sequence[int] | None,
    accumulation_steps: int | None = None,
) -> BatchPlan:
    """The plan with shares in proportion to `weights`, one a rank. Every rank has equally many
    micro-batches.

    `micro`: the most samples that a rank puts through the model at once, one for all or one a rank;
    None: its whole share. Raises PlanError.
    """
    shares = in_proportion(
        plan.effective, tuple(_one_a_rank("batch.shares", weights, plan.world_size))
    )
    if micro is None:
        limits = [max(1, own) for own in shares]
    elif isinstance(micro, int):
        limits = [micro] * plan.world_size
    else:
        limits = list(_one_a_rank("batch.micro", micro, plan.world_size))
    steps = max(1, *(math.ceil(own / limit) for own, limit in zip(shares, limits, strict=True)))
    if accumulation_steps is not None:
        if accumulation_steps > max(shares) or (micro is not None and accumulation_steps != steps):
            raise PlanError(
                f"batch.accumulation_steps={accumulation_steps}, but the shares "
                f"{'+'.join(map(str, shares))} of batch.effective={plan.effective} need {steps} "
                f"micro-batches each. Type: batch.accumulation_steps={steps} (or null)"
            )
        steps = accumulation_steps
    if micro is None:
        limits = [max(1, math.ceil(own / steps)) for own in shares]
    return replace(
        plan,
        weights=tuple(weights),
        limits=tuple(limits),
        accumulation_steps=steps,
        micro=math.ceil(max(shares) / steps),
    )


def measured(plan: BatchPlan, weights: Sequence[int], config: Batch) -> BatchPlan:
    """A plan of equal shares, with those that were measured: what was stated of its micro-batches
    holds for them.
    """
    if config.micro == "all":
        return unequal(plan, weights, None, config.accumulation_steps)
    return unequal(plan, weights, config.micro)


def _one_a_rank(key: str, numbers: Sequence[int], world_size: int) -> Sequence[int]:
    if len(numbers) != world_size:
        raise PlanError(
            f"{key} has {len(numbers)} numbers, and the run {ranks(world_size)}: it takes one a "
            f"rank. Write {key}={list(numbers[:1]) * world_size} or the like, or start as many "
            f"ranks: NPROC={len(numbers)}"
        )
    return numbers
