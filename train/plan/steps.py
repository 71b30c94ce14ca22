"""From the config, the ranks and the size of the data to the numbers of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction

from train.batch import BatchPlan, PlanError, make_plan, ranks
from train.config import Config
from train.optim.lr_schedule import Rate, RateInStages
from train.plan.stages import in_stages
from train.plan.unequal import unequal

__all__ = ["PlanError", "counting", "plan_batch", "plan_rate"]


def plan_batch(config: Config, loop: str, world_size: int, dataset_size: int | None) -> BatchPlan:
    """How each step is executed. Raises PlanError where that contradicts the config or the loop."""
    batch = config.batch
    effective = batch.effective
    if batch.effective_tokens is not None:
        effective = _whole_blocks(
            "batch.effective_tokens", batch.effective_tokens, config.data.block_size
        )
    stages = stages_of(config)
    tokens, longest = batch.micro_tokens, config.data.max_length
    micro = tokens // longest if tokens and longest else batch.micro
    weights = batch.shares if isinstance(batch.shares, list) else [1] * world_size
    is_unequal = isinstance(batch.shares, list) or isinstance(micro, list)
    plan = make_plan(
        stages.get(0, effective),
        "all" if is_unequal else micro,
        None if is_unequal else batch.accumulation_steps,
        world_size=world_size,
        dataset_size=dataset_size,
        drop_tail=config.data.drop_tail,
    )
    if is_unequal:
        plan = unequal(plan, weights, None if micro == "all" else micro, batch.accumulation_steps)
    if loop == "standard":
        _check_standard(config, plan)
    plan = in_stages(plan, stages, micro if isinstance(micro, int) else None)
    if loop == "standard":
        for start, _ in plan.stages:
            _check_standard_stage(plan.at(start), start)
    return plan


def stages_of(config: Config) -> dict[int, int]:
    """batch.schedule, or batch.schedule_tokens in samples: {samples seen: effective batch from
    there on}.
    """
    tokens, size = config.batch.schedule_tokens, config.data.block_size
    if tokens is None:
        return dict(config.batch.schedule or {})
    stages = {}
    for start, effective in tokens.items():

        def line(tokens_per_step: int, start: int = start) -> str:
            return f"'batch.schedule_tokens={tokens | {start: tokens_per_step}}'"

        stages[_samples(start, size)] = _whole_blocks(
            f"batch.schedule_tokens.{start}", effective, size, line
        )
    return stages


def _check_standard(config: Config, plan: BatchPlan) -> None:
    """Raises PlanError where a step is cut."""
    if config.batch.micro == "auto":
        raise PlanError(
            "the standard loop takes each step in one micro-batch: there is nothing to find for "
            "batch.micro=auto. Type: batch.micro=all, or use the accumulation loop: "
            "train.accumulate"
        )
    if plan.accumulation_steps == 1:
        return
    batch = config.batch
    tokens, longest = batch.micro_tokens, config.data.max_length
    share = max(plan.shares(plan.effective))
    stated = (
        f"batch.micro={batch.micro}" if batch.micro != "all" else f"{batch.accumulation_steps=}"
    )
    instead = "batch.micro=all"
    if tokens and longest:
        stated = (
            f"batch.micro_tokens={tokens} ({tokens // longest} texts of data.max_length={longest})"
        )
        instead = f"batch.micro_tokens={share * longest}"
    raise PlanError(
        f"the standard loop takes each step in one micro-batch, but {stated} cuts a rank's share "
        f"of {share} samples (batch.effective={plan.effective} on {ranks(plan.world_size)}) into "
        f"{plan.accumulation_steps}. Type: batch.effective={plan.effective} {instead}, or use the "
        "accumulation loop: train.accumulate"
    )


def _check_standard_stage(stage: BatchPlan, start: int) -> None:
    """Raises PlanError where a later stage of a schedule needs more than one micro-batch."""
    if stage.accumulation_steps > 1:
        raise PlanError(
            "batch.schedule grows a step by accumulation, and the standard loop takes each step "
            f"in one micro-batch: {stage.effective} samples, from {start:,} samples on, are "
            f"{stage.accumulation_steps} micro-batches of at most {stage.micro} on "
            f"{ranks(stage.world_size)}. Use the accumulation loop: train.accumulate"
        )


def counting(batch: BatchPlan, overfit: int | None) -> BatchPlan:
    """The plan by which steps and samples of a run are counted: data.overfit repeats the first
    steps of an epoch.

    They are full ones, unless they are all of an epoch.
    """
    steps = batch.steps_per_epoch
    if overfit is None or steps is None or overfit >= steps:
        return batch
    return replace(batch, dataset_size=overfit * batch.effective)


def plan_rate(config: Config, batch: BatchPlan, peak: float, *later: float) -> Rate:
    """The learning rate over all steps of the run; `later`: the peaks of the further stages of a
    schedule.
    """
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
    decay_steps = (
        round(schedule.decay_fraction * total_steps) if schedule.name == "wsd" else total_steps
    )
    rate = Rate(
        peak,
        schedule.name,
        warmup_steps,
        total_steps,
        schedule.final_fraction,
        decay_steps,
        schedule.decay_shape,
    )
    return _in_stages(rate, batch, [peak, *later], config) if batch.stages else rate


def _in_stages(rate: Rate, batch: BatchPlan, peaks: Sequence[float], config: Config) -> Rate:
    """Its horizons in samples; a fraction of a run is one of its samples."""
    schedule = config.schedule
    total = batch.samples_after(rate.total_steps)
    if schedule.warmup_fraction is not None:
        warmup = round(schedule.warmup_fraction * total)
    elif schedule.warmup_samples is not None:
        warmup = schedule.warmup_samples
    elif schedule.warmup_tokens is not None:
        warmup = _samples(schedule.warmup_tokens, config.data.block_size)
    else:
        warmup = batch.samples_after(rate.warmup_steps)
    decay = round(schedule.decay_fraction * total) if rate.name == "wsd" else total
    over_samples = replace(
        rate, peak=1.0, warmup_steps=warmup, total_steps=total, decay_steps=decay
    )
    stages = tuple((*stage, peak) for stage, peak in zip(batch.stages, peaks, strict=True))
    fields = asdict(rate)
    if schedule.warmup_fraction is not None:
        fields["warmup_steps"] = batch.steps_for(warmup)
    if rate.name == "wsd":
        fields["decay_steps"] = rate.total_steps - batch.steps_for(total - decay)
    return RateInStages(**fields, over_samples=over_samples, stages=stages)


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
            f"duration.epochs={duration.epochs}, but nobody knows how long an epoch of a stream "
            f"is. Type: duration.steps=1000 (or duration.samples={1000 * batch.effective})"
        )
    return batch.steps_for(math.ceil(round(duration.epochs * samples_per_epoch, 6)))


def _samples(tokens: int, block_size: int | None) -> int:
    """The blocks that hold `tokens`; the last one may hold more."""
    assert block_size is not None  # the config's checks ask for it
    return math.ceil(Fraction(tokens, block_size))


def _whole_blocks(
    key: str, tokens: int, block_size: int | None, line: Callable[[int], str] | None = None
) -> int:
    """`line`: what to type for so many tokens, where that is not `key=tokens`."""
    assert block_size is not None
    count, rest = divmod(tokens, block_size)
    if rest:
        sizes = [n * block_size for n in (count, count + 1) if n]
        near = " or ".join(line(size) if line else f"{key}={size}" for size in sizes)
        raise PlanError(
            f"{key}={tokens} is no whole number of blocks of data.block_size={block_size} tokens: "
            f"it would be {count} blocks and {rest} tokens. Type: {near}"
        )
    return count
