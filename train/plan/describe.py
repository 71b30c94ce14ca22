"""The plan of a run in lines, as it is printed before the first step.

They go from what is trained, on which data and for how long, to how the learning rate moves. Each
line states its arithmetic: a reader can check it against the config.
"""

from train.batch import ranks
from train.optim.lr_schedule import RateInStages
from train.plan.arithmetic import arithmetic
from train.plan.run_plan import RunPlan
from train.plan.stages import Staircase, largest_effective


def describe(plan: RunPlan) -> list[str]:
    return [
        _run(plan),
        f"batch     {_batch(plan)}",
        *_later_stages(plan),
        f"data      {_data(plan)}",
        *_micro_search(plan),
        *_tokens(plan),
        *_warn_of_little_data(plan),
        *plan.notes,
        f"duration  {plan.total_steps:,} steps = {_duration(plan)}",
        *_scaling(plan),
        f"rate      peak {_peak(plan)}, {_fall(plan)}",
        *_warn_of_long_warmup(plan),
    ]


def _run(plan: RunPlan) -> str:
    line = f"run       {plan.name}: {plan.loop} loop, {plan.precision}"
    if plan.identity.get("model.dtype"):
        line += ", parameters in bf16"
    return line


def _batch(plan: RunPlan) -> str:
    """How the samples of a step are divided."""
    batch = plan.batch
    # By length the number of micro-batches differs from step to step.
    if plan.micro_steps is None:
        return arithmetic(batch)
    least, most = plan.micro_steps
    count = f"{least} to {most}" if least < most else f"{most}"
    return (
        f"{batch.effective} samples on {ranks(batch.world_size)}, by length: {count} "
        f"micro-batches each, of at most {plan.micro_tokens:,} tokens with their padding"
    )


def _later_stages(plan: RunPlan) -> list[str]:
    """The stages of a schedule after the first, which the line on the batch describes."""
    batch = plan.batch
    if not isinstance(batch, Staircase):
        return []
    lines = []
    stages = list(zip(batch.stages, batch.first_steps(), strict=True))
    for (start, effective), first_step in stages[1:]:
        how = f"{effective} samples, by length" if plan.micro_steps else arithmetic(batch.at(start))
        reached = f"step {first_step:,}"
        if first_step > plan.total_steps:
            reached = "after the end of this run"
        lines.append(f"          from {start:,} samples on ({reached}): {how}")
    return lines


def _data(plan: RunPlan) -> str:
    """An epoch in steps, and the sets to evaluate on."""
    parts = [_epoch(plan)]
    for name, size in plan.eval_samples.items():
        parts.append(f"{size:,} in {name}" if name else f"{size:,} held out")
    return "; ".join(parts)


def _epoch(plan: RunPlan) -> str:
    batch = plan.batch
    if batch.dataset_size is None:
        return "a stream of unknown length"
    # Its steps differ in size, so an epoch is no fixed number of them.
    if batch.stages:
        return f"{batch.dataset_size:,} samples"
    # The sum is the reader's check: so many full steps, and what is left.
    full_steps, tail = divmod(batch.dataset_size, batch.effective)
    text = f"{batch.dataset_size:,} samples = {full_steps:,} x {batch.effective}"
    if tail and batch.drop_tail:
        return f"{text} ({tail} skipped: data.drop_tail)"
    return f"{text} + {tail}" if tail else text


def _micro_search(plan: RunPlan) -> list[str]:
    """The outcome of batch.micro=auto."""
    search = plan.micro_search
    if search is None:
        return []
    return [
        f"micro     auto: {search['chosen']} ({search['source']}); the largest that fits: "
        f"{search['largest_fitting']}"
    ]


def _tokens(plan: RunPlan) -> list[str]:
    """Of samples that are blocks.

    In all: at most. A set's last block may be filled up, and the epochs of a stream may end in
    smaller steps.
    """
    size = plan.tokens_per_sample
    batch = plan.batch
    if not size:
        return []
    total = f"at most {plan.total_samples * size:,} in all"
    if batch.stages:
        sizes = ", ".join(f"{effective * size:,}" for _, effective in batch.stages)
        return [f"tokens    {sizes} per step in the stages of the batch; {total}"]
    per_step = f"{batch.effective * size:,} per step = {batch.effective} x {size}"
    return [f"tokens    {per_step}; {total}"]


def _warn_of_little_data(plan: RunPlan) -> list[str]:
    size = plan.batch.dataset_size
    largest = largest_effective(plan.batch)
    # A batch larger than the data is the data: the rate would still follow the stated number.
    if size is None or size >= largest:
        return []
    return [
        f"warning   fewer samples than batch.effective={largest}: each step takes {size}; "
        f"optimizer.lr_scaling follows the stated {largest}"
    ]


def _duration(plan: RunPlan) -> str:
    samples = plan.total_samples
    epoch = plan.batch.samples_per_epoch
    if epoch is None:
        return f"at most {samples:,} samples (the last step of an epoch may be smaller)"
    return f"{samples:,} samples = {samples / epoch:.4g} epochs"


def _scaling(plan: RunPlan) -> list[str]:
    """How the optimizer's numbers follow from the batch, and what speaks against that."""
    lines = []
    for table in plan.scaling:
        lines += [f"scaling   {line}" for line in table.lines()]
    return lines + [f"hint      {hint}" for hint in plan.scaling_hints]


def _peak(plan: RunPlan) -> str:
    peaks = [plan.rate.peak]
    if isinstance(plan.rate, RateInStages):
        # One number where the stages do not differ: no rule, or lr_on_schedule=keep.
        peaks = [peak for _, _, peak in plan.rate.stages]
    if len(set(peaks)) == 1:
        return f"{peaks[0]:.4g}"
    return f"{', '.join(f'{peak:.4g}' for peak in peaks)} in the stages of the batch"


def _fall(plan: RunPlan) -> str:
    rate = plan.rate
    if rate.name == "constant":
        text = "constant"
    else:
        # The floor is that of the last stage which this run reaches.
        text = f"{rate.name} to {rate.final_fraction * plan.peaks[-1]:.4g}"
    if rate.name == "wsd":
        text += f" in the last {rate.decay_steps} steps ({rate.decay_shape})"
    if rate.warmup_steps:
        text += f" after {rate.warmup_steps} steps of warm-up"
    return text


def _warn_of_long_warmup(plan: RunPlan) -> list[str]:
    rate = plan.rate
    steps = plan.total_steps
    if rate.warmup_steps <= steps:
        return []
    last = rate.at(steps, plan.batch.samples_after(steps - 1))
    return [
        f"warning   {rate.warmup_steps:,} steps of warm-up in a run of {steps:,}: the rate never "
        f"reaches its peak, the last step is taken at {last:.4g} (schedule.warmup_*)"
    ]
