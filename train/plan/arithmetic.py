"""How the samples of a step are divided, for the screen."""

from train.batch import BatchPlan, ranks, share
from train.batch.plan import split_evenly


def arithmetic(plan: BatchPlan) -> str:
    """`100 samples = 34+33+33 on 3 ranks, in micro-batches of 12+11+11`: of a full step."""
    if plan.weights:
        return _unequal(plan)
    longest, world_size = share(plan.effective, 0, plan.world_size), plan.world_size
    longer = plan.effective % world_size
    if longer == 0:
        shares = f"{world_size} x {longest}" if world_size > 1 else f"{longest}"
    elif world_size <= 8:
        shares = "+".join(
            str(share(plan.effective, rank, world_size)) for rank in range(world_size)
        )
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


def _unequal(plan: BatchPlan) -> str:
    """`100 samples = 75+25 on 2 ranks, in 10 micro-batches each, of at most 8+3`."""
    shares = plan.shares(plan.effective)
    largest = [-(-own // plan.accumulation_steps) for own in shares]
    each = "one micro-batch each"
    if plan.accumulation_steps > 1:
        each = (
            f"{plan.accumulation_steps} micro-batches each, of at most "
            f"{'+'.join(map(str, largest))}"
        )
    return (
        f"{plan.effective} samples = {'+'.join(map(str, shares))} on {ranks(plan.world_size)}, in "
        f"{each}"
    )
