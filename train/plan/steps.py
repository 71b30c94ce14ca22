"""From the config, the ranks and the size of the data to the numbers of a run."""

import math
from dataclasses import replace
from fractions import Fraction

from train.batch import BatchPlan, PlanError, make_plan, ranks
from train.config import Config
from train.optim.lr_schedule import Rate

__all__ = ["PlanError", "counting", "plan_batch", "plan_rate"]


def plan_batch(config: Config, loop: str, world_size: int, dataset_size: int | None) -> BatchPlan:
    """How each step is executed. Raises PlanError where that contradicts the config or the loop."""
    batch = config.batch
    effective = batch.effective
    if batch.effective_tokens is not None:
        effective = _whole_blocks(batch.effective_tokens, config.data.block_size)
    tokens, longest = batch.micro_tokens, config.data.max_length
    plan = make_plan(
        effective,
        tokens // longest if tokens and longest else batch.micro,
        batch.accumulation_steps,
        world_size=world_size,
        dataset_size=dataset_size,
        drop_tail=config.data.drop_tail,
    )
    if loop == "standard" and batch.micro == "auto":
        raise PlanError(
            "the standard loop takes each step in one micro-batch: there is nothing to find for batch.micro=auto. "
            "Type: batch.micro=all, or use the accumulation loop: train.accumulate"
        )
    if loop == "standard" and plan.accumulation_steps > 1:
        stated = f"batch.micro={batch.micro}" if batch.micro != "all" else f"{batch.accumulation_steps=}"
        instead = "batch.micro=all"
        if tokens and longest:
            stated = f"batch.micro_tokens={tokens} ({tokens // longest} texts of data.max_length={longest})"
            instead = f"batch.micro_tokens={math.ceil(plan.effective / world_size) * longest}"
        raise PlanError(
            f"the standard loop takes each step in one micro-batch, but {stated} cuts a rank's share of "
            f"{math.ceil(plan.effective / world_size)} samples (batch.effective={plan.effective} on "
            f"{ranks(world_size)}) into {plan.accumulation_steps}. "
            f"Type: batch.effective={plan.effective} {instead}, or use the accumulation loop: train.accumulate"
        )
    return plan


def counting(batch: BatchPlan, overfit: int | None) -> BatchPlan:
    """The plan by which steps and samples of a run are counted: data.overfit repeats the first steps of an epoch.

    They are full ones, unless they are all of an epoch.
    """
    steps = batch.steps_per_epoch
    if overfit is None or steps is None or overfit >= steps:
        return batch
    return replace(batch, dataset_size=overfit * batch.effective)


def plan_rate(config: Config, batch: BatchPlan, peak: float) -> Rate:
    """The learning rate over all steps of the run."""
    schedule = config.schedule
    samples_per_epoch = batch.samples_per_epoch
    batch = counting(batch, config.data.overfit)
    total_steps = _total_steps(config, batch, samples_per_epoch)
    if schedule.warmup_fraction is not None:
        warmup_steps = round(schedule.warmup_fraction * total_steps)
    elif schedule.warmup_samples is not None:
        warmup_steps = batch.steps_for(schedule.warmup_samples)
    elif schedule.warmup_tokens is not None:
        warmup_steps = batch.steps_for(_samples(schedule.warmup_tokens, config.data.block_size))
    else:
        warmup_steps = schedule.warmup_steps or 0
    decay_steps = round(schedule.decay_fraction * total_steps) if schedule.name == "wsd" else total_steps
    return Rate(
        peak, schedule.name, warmup_steps, total_steps, schedule.final_fraction, decay_steps, schedule.decay_shape
    )


def _total_steps(config: Config, batch: BatchPlan, samples_per_epoch: int | None) -> int:
    duration = config.duration
    if duration.steps is not None:
        return duration.steps
    if duration.samples is not None:
        return batch.steps_for(duration.samples)
    if duration.tokens is not None:
        return batch.steps_for(_samples(duration.tokens, config.data.block_size))
    assert duration.epochs is not None  # the config's checks ask for exactly one
    if samples_per_epoch is None:
        raise PlanError(
            f"duration.epochs={duration.epochs}, but nobody knows how long an epoch of a stream is. "
            f"Type: duration.steps=1000 (or duration.samples={1000 * batch.effective})"
        )
    return batch.steps_for(math.ceil(round(duration.epochs * samples_per_epoch, 6)))


def _samples(tokens: int, block_size: int | None) -> int:
    """The blocks that hold `tokens`; the last one may hold more."""
    assert block_size is not None  # the config's checks ask for it
    return math.ceil(Fraction(tokens, block_size))


def _whole_blocks(tokens: int, block_size: int | None) -> int:
    assert block_size is not None
    count, rest = divmod(tokens, block_size)
    if rest:
        near = " or ".join(f"batch.effective_tokens={n * block_size}" for n in (count, count + 1) if n)
        raise PlanError(
            f"batch.effective_tokens={tokens} is no whole number of blocks of data.block_size={block_size} tokens: it "
            f"would be {count} blocks and {rest} tokens. Type: {near}"
        )
    return count
