"""Finds, in the plan, micro-batches of one sample, which BatchNorm in train mode cannot take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from train.batch import BatchPlan, ranks
from train.batch.assign import divide
from train.batch.window import Batch
from train.config import Config
from train.errors import UserError, counted, some
from train.exactness.reference_gradient import active_batch_norms, loss_sums, widest_forward
from train.models.preserve_state import preserve_state
from train.plan.run_plan import RunPlan
from train.plan.stages import Staircase
from train.step import Learner

TORCH_MESSAGE = "Expected more than 1 value per channel"


class LoneSample(UserError):
    """A step of this run has a micro-batch of one sample, which its model cannot train on."""


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """All steps of one size: full ones, the tails of epochs, or those of a stage."""

    first_step: int  # counted from 1
    samples: int
    is_tail: bool
    batch: BatchPlan


def check_lone_samples(learner: Learner, batch: Batch, plan: RunPlan, config: Config) -> None:
    """Raises LoneSample where a step will take one sample alone, and the model cannot.

    Tried on the first sample of `batch` (on the CPU), only where there is such a step. Where texts
    are put together by length the sizes are not known before, and nothing is tried.
    """
    if plan.micro_tokens is not None:
        return
    # From the plan, not from the data: the first such step may be hours away.
    kinds = _step_kinds(plan, config.data.overfit)
    lone = [kind for kind in kinds if has_lone_sample(kind.batch, kind.samples)]
    if lone and _raises_on_one_sample(learner, batch):
        raise LoneSample(_message(learner, plan, kinds, lone[0]))


def _message(learner: Learner, plan: RunPlan, kinds: Sequence[StepKind], kind: StepKind) -> str:
    batch_norms = some(active_batch_norms(learner.module)) or "the model"
    sizes = []
    for size in _sizes_with_lone_sample(kind.batch, kind.samples):
        sizes.append(str(size) if size else "1 that does not count")
    tail = ", the tail of an epoch," if kind.is_tail else ""
    return (
        f"step {kind.first_step:,} takes {counted(kind.samples, 'sample')}{tail} on "
        f"{ranks(plan.batch.world_size)}, on one of them in micro-batches of {'+'.join(sizes)}, "
        f"and BatchNorm in train mode ({batch_norms}) cannot take one sample alone: the run would "
        f"end there ({TORCH_MESSAGE} when training). {_advice(plan, kinds, kind)}"
    )


def refuses_lone_samples(
    learner: Learner, batch: Batch, plan: RunPlan, config: Config
) -> Callable[[BatchPlan], bool]:
    """A function: would the run's plan, in other micro-batches, have a lone sample that fails?

    Tried here, on the first sample of `batch` (on the CPU), and only where there is a BatchNorm in
    train mode.
    """
    has_batch_norm = bool(active_batch_norms(learner.module))
    if not has_batch_norm or learner.parallel.is_sharded:
        return lambda other: False
    # Once, now: memory may be short when the function is asked, and another forward pass would not
    # fit.
    if not _raises_on_one_sample(learner, batch):
        return lambda other: False

    def refuses(other: BatchPlan) -> bool:
        kinds = _step_kinds(replace(plan, batch=other), config.data.overfit)
        return any(has_lone_sample(kind.batch, kind.samples) for kind in kinds)

    return refuses


def has_lone_sample(batch: BatchPlan, samples: int) -> bool:
    """Whether a rank puts one sample alone through the model in a step of so many.

    A filler is one sample, too.
    """
    return bool(_sizes_with_lone_sample(batch, samples))


def _sizes_with_lone_sample(batch: BatchPlan, samples: int) -> tuple[int, ...]:
    """The micro-batches of the first rank that has one of a single sample or a filler; else ()."""
    for rank in range(batch.world_size):
        _, sizes = divide(batch, samples, rank)
        if min(sizes) < 2:
            return sizes
    return ()


def _step_kinds(plan: RunPlan, overfit: int | None) -> list[StepKind]:
    """The full step, and the tail of an epoch, where the run has them; or those of each stage."""
    batch = plan.batch
    if isinstance(batch, Staircase):
        return _step_kinds_in_stages(batch, plan.total_steps)
    full = StepKind(first_step=1, samples=batch.effective, is_tail=False, batch=batch)
    if batch.dataset_size is None:
        return [full]
    kinds = []
    if batch.dataset_size >= batch.effective:
        kinds.append(full)
    tail_step = batch.steps_per_epoch or 0
    # data.overfit repeats the first windows: a tail behind them is never trained.
    reaches_tail = tail_step <= plan.total_steps and (overfit is None or tail_step <= overfit)
    if batch.tail_samples and not batch.drop_tail and reaches_tail:
        kinds.append(
            StepKind(first_step=tail_step, samples=batch.tail_samples, is_tail=True, batch=batch)
        )
    return kinds


def _step_kinds_in_stages(batch: Staircase, total_steps: int) -> list[StepKind]:
    kinds: dict[tuple[int, int], StepKind] = {}
    step = 1
    samples_seen = 0
    for count, samples in batch.runs():
        if step > total_steps:
            break
        stage = batch.at(samples_seen)
        if count:
            kind = StepKind(
                first_step=step, samples=samples, is_tail=samples < stage.effective, batch=stage
            )
            # One of each kind, the first: the message names the step at which the run would end.
            kinds.setdefault((samples, stage.effective), kind)
        step += count
        samples_seen += count * samples
    return list(kinds.values())


def _raises_on_one_sample(learner: Learner, batch: Batch) -> bool:
    """Whether torch says of one sample alone, in training, that a norm cannot take it."""
    one_sample = {name: column[:1] for name, column in batch.items()}
    with (
        preserve_state(learner.module, learner.device),
        widest_forward(learner, batch),
        torch.no_grad(),
    ):
        # Asked of torch itself: a norm over images of more than one pixel takes one sample.
        try:
            loss_sums(learner, one_sample)
        except ValueError as error:
            return TORCH_MESSAGE in str(error)
    return False


def _advice(plan: RunPlan, kinds: Sequence[StepKind], kind: StepKind) -> str:
    other_norm = "Use GroupNorm or LayerNorm, freeze it by .eval() in the model's constructor"
    if plan.batch.stages:
        return f"{other_norm}, or state another schedule"
    settings = []
    epoch_is_tail_alone = plan.batch.samples_per_epoch == plan.batch.tail_samples
    if kind.is_tail and not epoch_is_tail_alone:
        settings.append(f"data.drop_tail=true (leaves {kind.samples} samples out of each epoch)")
    if plan.loop == "accumulate" and not plan.batch.weights:
        cut = _other_cut(plan.batch, kinds)
        if cut is not None:
            settings.append(f"batch.effective={cut.effective} batch.micro={cut.micro}")
    if not settings:
        return f"{other_norm}, or state another batch"
    return f"Set: {' or '.join(settings)}"


def _other_cut(batch: BatchPlan, kinds: Sequence[StepKind]) -> BatchPlan | None:
    """The next larger micro-batch, else the next smaller one, that leaves no lone sample."""
    share = -(-batch.effective // batch.world_size)
    # Larger first: fewer micro-steps take less time.
    larger = range(batch.micro + 1, share + 1)
    smaller = range(batch.micro - 1, 1, -1)
    for micro in (*larger, *smaller):
        steps = -(-share // micro)
        # Spread evenly over so many steps, as the plan does: the micro-batch may come out smaller.
        cut = replace(batch, accumulation_steps=steps, micro=-(-share // steps))
        if not any(has_lone_sample(cut, kind.samples) for kind in kinds):
            return cut
    return None
