"""batch.shares: ranks of unequal speed take unequal parts of the same step."""

import math
from collections.abc import Sequence
from dataclasses import replace

from train.batch import BatchPlan, PlanError, ranks
from train.batch.plan import in_proportion
from train.config.recipe import Batch


def with_shares(
    plan: BatchPlan,
    weights: Sequence[int],
    micro: int | Sequence[int] | None,
    accumulation_steps: int | None = None,
) -> BatchPlan:
    """The plan with shares in proportion to `weights`, one a rank.

    Every rank has equally many micro-batches, since all must reach the reduction together.
    `micro`: the most samples that a rank puts through the model at once, one for all or one a rank;
    None: its full share. Raises PlanError.
    """
    _check_one_a_rank("batch.shares", weights, plan.world_size)
    shares = in_proportion(plan.effective, tuple(weights))
    if micro is None:
        # A rank whose share is 0 takes part all the same, with a filler.
        limits = [max(1, share) for share in shares]
    elif isinstance(micro, int):
        # One limit for all: these ranks differ in speed, not in memory.
        limits = [micro] * plan.world_size
    else:
        _check_one_a_rank("batch.micro", micro, plan.world_size)
        limits = list(micro)
    counts = [math.ceil(share / limit) for share, limit in zip(shares, limits, strict=True)]
    steps = max(1, *counts)
    if accumulation_steps is not None:
        differs = micro is not None and accumulation_steps != steps
        if differs or accumulation_steps > max(shares):
            raise PlanError(
                f"batch.accumulation_steps={accumulation_steps}, but the shares "
                f"{'+'.join(map(str, shares))} of batch.effective={plan.effective} need {steps} "
                f"micro-batches each. Set: batch.accumulation_steps={steps} (or null)"
            )
        steps = accumulation_steps
    # Without a stated limit it follows from the number of micro-steps.
    if micro is None:
        limits = [max(1, math.ceil(share / steps)) for share in shares]
    return replace(
        plan,
        weights=tuple(weights),
        limits=tuple(limits),
        accumulation_steps=steps,
        micro=math.ceil(max(shares) / steps),
    )


def with_measured_shares(plan: BatchPlan, weights: Sequence[int], config: Batch) -> BatchPlan:
    """A plan of equal shares, with measured ones; its micro-batches are those of the config."""
    if config.micro == "all":
        return with_shares(plan, weights, None, config.accumulation_steps)
    # A stated number of micro-steps is left out: with measured shares it would differ, and be
    # refused.
    return with_shares(plan, weights, config.micro)


def _check_one_a_rank(key: str, numbers: Sequence[int], world_size: int) -> None:
    if len(numbers) == world_size:
        return
    raise PlanError(
        f"{key} has {len(numbers)} numbers, and the run {ranks(world_size)}: it takes one a "
        f"rank. Write {key}={list(numbers[:1]) * world_size} or the like, or start as many "
        f"ranks: NPROC={len(numbers)}"
    )
