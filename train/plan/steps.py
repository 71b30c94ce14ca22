"""From the config, the ranks and the size of the data to the numbers of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fractions import Fraction

from train.batch import BatchPlan, PlanError, make_plan, ranks
from train.config import Config
from train.optim.lr_schedule import Rate, RateInStages
from train.plan.stages import in_stages
from train.plan.unequal import with_shares

__all__ = ["PlanError", "counting", "plan_batch", "plan_rate"]


def plan_batch(config: Config, loop: str, world_size: int, dataset_size: int | None) -> BatchPlan:
    """How each step is executed. Raises PlanError where that contradicts the config or the loop."""
    batch = config.batch
    effective = batch.effective
    # From tokens to samples: everything below counts samples.
    if batch.effective_tokens is not None:
        effective = _whole_blocks(
            "batch.effective_tokens", batch.effective_tokens, config.data.block_size
        )
    stages = stages_of(config)
    # The first stage is planned like a batch without a schedule; in_stages adds the others.
    effective = stages.get(0, effective)
    micro = batch.micro
    if batch.micro_tokens and config.data.max_length:
        # Of the longest texts: each other micro-batch has at least as many samples.
        micro = batch.micro_tokens // config.data.max_length

    is_unequal = isinstance(batch.shares, list) or isinstance(micro, list)
    # Lists are for with_shares, which cuts the step anew.
    plan = make_plan(
        effective,
        "all" if is_unequal else micro,
        None if is_unequal else batch.accumulation_steps,
        world_size=world_size,
        dataset_size=dataset_size,
        drop_tail=config.data.drop_tail,
    )
    if is_unequal:
        weights = batch.shares if isinstance(batch.shares, list) else [1] * world_size
        limits = None if micro == "all" else micro
        plan = with_shares(plan, weights, limits, batch.accumulation_steps)

    # The first stage by the keys that state it; the later ones below, by the schedule.
    if loop == "standard":
        _check_standard(config, plan)
    plan = in_stages(plan, stages, micro if isinstance(micro, int) else None)
    if loop == "standard":
        for start, _ in plan.stages:
            _check_standard_stage(plan.at(start), start)
    return plan


def stages_of(config: Config) -> dict[int, int]:
    """{samples seen: effective batch from there on}: batch.schedule, or batch.schedule_tokens."""
    tokens = config.batch.schedule_tokens
    size = config.data.block_size
    if tokens is None:
        return dict(config.batch.schedule or {})
    stages = {}
    for start, effective in tokens.items():
        # `start` is bound here: a closure would see that of the last stage. The line holds the
        # whole mapping, since an override replaces it.
        def line(tokens_per_step: int, start: int = start) -> str:
            return f"'batch.schedule_tokens={tokens | {start: tokens_per_step}}'"

        key = f"batch.schedule_tokens.{start}"
        stages[_samples(start, size)] = _whole_blocks(key, effective, size, line)
    return stages


def _check_standard(config: Config, plan: BatchPlan) -> None:
    """Raises PlanError where a step is cut."""
    batch = config.batch
    if batch.micro == "auto":
        raise PlanError(
            "the standard loop takes each step in one micro-batch: there is nothing to find for "
            "batch.micro=auto. Set: batch.micro=all, or use the accumulation loop: "
            "train.accumulate"
        )
    if plan.accumulation_steps == 1:
        return
    share = max(plan.shares(plan.effective))
    # Which key cuts the step, and what to write instead of it.
    tokens = batch.micro_tokens
    longest = config.data.max_length
    instead = "batch.micro=all"
    if tokens and longest:
        samples = tokens // longest
        stated = f"batch.micro_tokens={tokens} ({samples} texts of data.max_length={longest})"
        instead = f"batch.micro_tokens={share * longest}"
    elif batch.micro != "all":
        stated = f"batch.micro={batch.micro}"
    else:
        stated = f"batch.accumulation_steps={batch.accumulation_steps}"
    raise PlanError(
        f"the standard loop takes each step in one micro-batch, but {stated} cuts a rank's share "
        f"of {share} samples (batch.effective={plan.effective} on {ranks(plan.world_size)}) into "
        f"{plan.accumulation_steps}. Set: batch.effective={plan.effective} {instead}, or use the "
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
    """The plan by which steps and samples are counted: data.overfit repeats an epoch's first steps.

    They are full ones, unless they are all of an epoch.
    """
    steps = batch.steps_per_epoch
    if overfit is None or steps is None or overfit >= steps:
        return batch
    return replace(batch, dataset_size=overfit * batch.effective)


def plan_rate(config: Config, batch: BatchPlan, peak: float, *later: float) -> Rate:
    """The learning rate over all steps of the run.

    `later`: the peaks of the further stages of a schedule.
    """
    schedule = config.schedule
    # duration.epochs counts real epochs, also where data.overfit repeats the first steps of one.
    samples_per_epoch = batch.samples_per_epoch
    batch = counting(batch, config.data.overfit)
    total_steps = _total_steps(config, batch, samples_per_epoch)
    warmup_samples = _warmup_samples(config)
    if schedule.warmup_fraction is not None:
        warmup_steps = round(schedule.warmup_fraction * total_steps)
    elif warmup_samples is not None:
        warmup_steps = batch.steps_for(warmup_samples)
    else:
        warmup_steps = schedule.warmup_steps or 0
    # Only wsd has a decay of its own; the others fall over all steps.
    decay_steps = total_steps
    if schedule.name == "wsd":
        decay_steps = round(schedule.decay_fraction * total_steps)
    rate = Rate(
        peak=peak,
        name=schedule.name,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        final_fraction=schedule.final_fraction,
        decay_steps=decay_steps,
        decay_shape=schedule.decay_shape,
    )
    return _in_stages(rate, batch, [peak, *later], config) if batch.stages else rate


def _warmup_samples(config: Config) -> int | None:
    """None where the warm-up is stated in steps or as a share of the run."""
    schedule = config.schedule
    if schedule.warmup_samples is not None:
        return schedule.warmup_samples
    if schedule.warmup_tokens is not None:
        return _samples(schedule.warmup_tokens, config.data.block_size)
    return None


def _in_stages(rate: Rate, batch: BatchPlan, peaks: Sequence[float], config: Config) -> Rate:
    """Its horizons in samples, since a step has no fixed size; a fraction is one of the samples."""
    schedule = config.schedule
    total = batch.samples_after(rate.total_steps)
    warmup_samples = _warmup_samples(config)
    if schedule.warmup_fraction is not None:
        warmup = round(schedule.warmup_fraction * total)
    elif warmup_samples is not None:
        warmup = warmup_samples
    else:
        warmup = batch.samples_after(rate.warmup_steps)
    decay = round(schedule.decay_fraction * total) if rate.name == "wsd" else total
    # A shape of peak 1: each stage multiplies it by its own peak.
    over_samples = replace(
        rate, peak=1.0, warmup_steps=warmup, total_steps=total, decay_steps=decay
    )
    stages = tuple((*stage, peak) for stage, peak in zip(batch.stages, peaks, strict=True))
    # For the screen, the fractions in steps as well.
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
    assert duration.epochs is not None  # The config's checks ask for exactly one.
    if samples_per_epoch is None:
        raise PlanError(
            f"duration.epochs={duration.epochs}, but the length of a stream's epoch is unknown. "
            f"Set: duration.steps=1000 (or duration.samples={1000 * batch.effective})"
        )
    # Rounded first: 0.07 epochs of 100 samples are 7, and in floating point 7.000000000000001.
    return batch.steps_for(math.ceil(round(duration.epochs * samples_per_epoch, 6)))


def _samples(tokens: int, block_size: int | None) -> int:
    """The blocks that hold `tokens`; the last one may hold more."""
    assert block_size is not None  # The config's checks ask for it.
    # As a fraction: in floating point the quotient of large numbers is rounded.
    return math.ceil(Fraction(tokens, block_size))


def _whole_blocks(
    key: str, tokens: int, block_size: int | None, line: Callable[[int], str] | None = None
) -> int:
    """The blocks that `tokens` are. Raises PlanError where they are no whole number of them.

    `line`: what to type for so many tokens, where that is not `key=tokens`.
    """
    assert block_size is not None  # The config's checks ask for it.
    count, rest = divmod(tokens, block_size)
    if rest == 0:
        return count
    # Both neighbours to type, but not 0 blocks.
    sizes = [num_blocks * block_size for num_blocks in (count, count + 1) if num_blocks]
    near = " or ".join(line(size) if line else f"{key}={size}" for size in sizes)
    raise PlanError(
        f"{key}={tokens} is no whole number of blocks of data.block_size={block_size} tokens: "
        f"it would be {count} blocks and {rest} tokens. Set: {near}"
    )
