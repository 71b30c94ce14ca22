"""How the samples of a step are divided, for the screen."""

from train.batch import BatchPlan, ranks
from train.batch.plan import split_evenly

MOST_TERMS = 8
"""Of a sum that is written out."""


def arithmetic(plan: BatchPlan) -> str:
    """`100 samples = 34+33+33 on 3 ranks, in micro-batches of 12+11+11`: of a full step."""
    if plan.weights:
        return _unequal(plan)
    shares = split_evenly(plan.effective, plan.world_size)
    total = f"{plan.effective} samples = {_shares(shares)} on {ranks(plan.world_size)}"
    steps = plan.accumulation_steps
    if steps == 1:
        return f"{total}, in one micro-batch"
    if steps <= MOST_TERMS:
        # Of the first rank, which has the largest share.
        return f"{total}, in micro-batches of {_sum(split_evenly(shares[0], steps))}"
    return f"{total}, in {steps} micro-batches of at most {plan.micro}"


def _shares(shares: list[int]) -> str:
    # An even split: the larger shares come first, and the others are one sample less.
    largest = shares[0]
    num_largest = shares.count(largest)
    if len(shares) == 1:
        return f"{largest}"
    if num_largest == len(shares):
        return f"{len(shares)} x {largest}"
    if len(shares) <= MOST_TERMS:
        return _sum(shares)
    return f"{num_largest} x {largest} + {len(shares) - num_largest} x {largest - 1}"


def _unequal(plan: BatchPlan) -> str:
    """`100 samples = 75+25 on 2 ranks, in 10 micro-batches each, of at most 8+3`."""
    shares = plan.shares(plan.effective)
    steps = plan.accumulation_steps
    total = f"{plan.effective} samples = {_sum(shares)} on {ranks(plan.world_size)}"
    if steps == 1:
        return f"{total}, in one micro-batch each"
    # Every rank has equally many micro-batches, so a small share is cut into small ones.
    largest = [-(-share // steps) for share in shares]
    return f"{total}, in {steps} micro-batches each, of at most {_sum(largest)}"


def _sum(numbers: list[int]) -> str:
    return "+".join(map(str, numbers))
