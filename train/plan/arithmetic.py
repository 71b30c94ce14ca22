"""How the samples of a step are divided, for the screen."""

from train.batch import BatchPlan, ranks, share
from train.batch.plan import split_evenly


def arithmetic(plan: BatchPlan) -> str:
    """`100 samples = 34+33+33 on 3 ranks, in micro-batches of 12+11+11`: of a full step."""
    longest, world_size = share(plan.effective, 0, plan.world_size), plan.world_size
    longer = plan.effective % world_size
    if longer == 0:
        shares = f"{world_size} x {longest}" if world_size > 1 else f"{longest}"
    elif world_size <= 8:
        shares = "+".join(str(share(plan.effective, rank, world_size)) for rank in range(world_size))
    else:
        shares = f"{longer} x {longest} + {world_size - longer} x {longest - 1}"
    steps = plan.accumulation_steps
    if steps == 1:
        sizes = "one micro-batch"
    elif steps <= 8:
        sizes = "micro-batches of " + "+".join(map(str, split_evenly(longest, steps)))
    else:
        sizes = f"{steps} micro-batches of at most {plan.micro}"
    return f"{plan.effective} samples = {shares} on {ranks(world_size)}, in {sizes}"
