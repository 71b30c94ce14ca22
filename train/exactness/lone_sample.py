"""A micro-batch of one sample ends a run whose BatchNorm is in train mode. The plan knows where it
will come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from train.batch import BatchPlan, ranks
from train.batch.assign import divide
from train.batch.window import Batch
from train.config import Config
from train.errors import UserError, some
from train.exactness.reference_gradient import at_work, sums_of, widest_forward
from train.models.preserve_state import undisturbed
from train.plan.run_plan import RunPlan
from train.plan.stages import Staircase
from train.step import Learner

TORCH_REFUSES = "Expected more than 1 value per channel"


class LoneSample(UserError):
    """A step of this run has a micro-batch of one sample, which its model cannot take
    in training.
    """


@dataclass(frozen=True)
class Kind:
    """One of the sizes that a step can have."""

    first: int  # step of that size, counted from 1
    samples: int
    is_tail: bool
    batch: BatchPlan


def check_lone_samples(learner: Learner, batch: Batch, plan: RunPlan, config: Config) -> None:
    """Raises LoneSample where a step will take one sample alone, and torch refuses that.

    Tried on the first sample of `batch` (on the CPU), only where there is such a step. Where texts
    are put together by length the sizes are not known before, and nothing is tried.
    """
    if plan.micro_tokens is not None:
        return
    kinds = _kinds(plan, config.data.overfit)
    alone = [kind for kind in kinds if has_lone_sample(kind.batch, kind.samples)]
    if not alone or not _refuses(learner, batch):
        return
    kind = alone[0]
    norms = some(at_work(learner.module, nn.modules.batchnorm._BatchNorm)) or "the model"
    sizes = "+".join(
        str(size or "1 that does not count") for size in _lonely_rank(kind.batch, kind.samples)
    )
    samples = f"{kind.samples} samples" if kind.samples > 1 else "1 sample"
    tail = ", the tail of an epoch," if kind.is_tail else ""
    raise LoneSample(
        f"step {kind.first:,} takes {samples}{tail} on {ranks(plan.batch.world_size)}, on one of "
        f"them in micro-batches of {sizes}, and BatchNorm in train mode ({norms}) cannot take one "
        f"sample alone: the run would end there ({TORCH_REFUSES} when training). "
        f"{_remedy(plan, kinds, kind)}"
    )


def refuses_lone_samples(
    learner: Learner, batch: Batch, plan: RunPlan, config: Config
) -> Callable[[BatchPlan], bool]:
    """Takes the run's plan in other micro-batches: would a step take one sample alone, which torch
    refuses?

    Tried here, on the first sample of `batch` (on the CPU), and only where there is a BatchNorm in
    train mode.
    """
    normalising = at_work(learner.module, nn.modules.batchnorm._BatchNorm)
    if not normalising or learner.parallel.is_sharded or not _refuses(learner, batch):
        return lambda other: False

    def refuses(other: BatchPlan) -> bool:
        kinds = _kinds(replace(plan, batch=other), config.data.overfit)
        return any(has_lone_sample(kind.batch, kind.samples) for kind in kinds)

    return refuses


def has_lone_sample(batch: BatchPlan, samples: int) -> bool:
    """Whether a rank puts one sample alone through the model in a step of so many: a filler is one,
    too.
    """
    return bool(_lonely_rank(batch, samples))


def _lonely_rank(batch: BatchPlan, samples: int) -> tuple[int, ...]:
    """The micro-batches of the first rank that has one of a single sample, or of none; () where no
    rank has.
    """
    for rank in range(batch.world_size):
        _, sizes = divide(batch, samples, rank)
        if min(sizes) < 2:
            return sizes
    return ()


def _kinds(plan: RunPlan, overfit: int | None) -> list[Kind]:
    """The full step, and the tail of an epoch, where the run has them; with a schedule, those of
    each stage.
    """
    batch, steps = plan.batch, plan.total_steps
    if isinstance(batch, Staircase):
        return _kinds_in_stages(batch, steps)
    if batch.dataset_size is None:
        return [Kind(1, batch.effective, False, batch)]
    kinds = []
    if batch.dataset_size >= batch.effective:
        kinds.append(Kind(1, batch.effective, False, batch))
    of_epoch = batch.steps_per_epoch or 0
    reached = of_epoch <= steps and (overfit is None or of_epoch <= overfit)
    if batch.tail_samples and not batch.drop_tail and reached:
        kinds.append(Kind(of_epoch, batch.tail_samples, True, batch))
    return kinds


def _kinds_in_stages(batch: Staircase, steps: int) -> list[Kind]:
    found: dict[tuple[int, int], Kind] = {}
    step, seen = 1, 0
    for count, samples in batch.runs():
        if step > steps:
            break
        stage = batch.at(seen)
        if count:
            kind = Kind(step, samples, samples < stage.effective, stage)
            found.setdefault((samples, stage.effective), kind)
        step += count
        seen += count * samples
    return list(found.values())


def _refuses(learner: Learner, batch: Batch) -> bool:
    """Whether torch says of one sample alone, in training, that a norm cannot take it."""
    one = {name: column[:1] for name, column in batch.items()}
    with (
        undisturbed(learner.module, learner.device),
        widest_forward(learner, batch),
        torch.no_grad(),
    ):
        try:
            sums_of(learner, one)
        except ValueError as error:
            return TORCH_REFUSES in str(error)
    return False


def _remedy(plan: RunPlan, kinds: Sequence[Kind], kind: Kind) -> str:
    ways = []
    if plan.batch.stages:
        return (
            "Use GroupNorm or LayerNorm, freeze it by .eval() in the model's constructor, or "
            "state another schedule"
        )
    if kind.is_tail and plan.batch.samples_per_epoch != plan.batch.tail_samples:
        ways.append(f"data.drop_tail=true (leaves {kind.samples} samples out of each epoch)")
    cut = (
        _other_cut(plan.batch, kinds)
        if plan.loop == "accumulate" and not plan.batch.weights
        else None
    )
    if cut is not None:
        ways.append(f"batch.effective={cut.effective} batch.micro={cut.micro}")
    if not ways:
        return (
            "Use GroupNorm or LayerNorm, freeze it by .eval() in the model's constructor, or "
            "state another batch"
        )
    return f"Type: {' or '.join(ways)}"


def _other_cut(batch: BatchPlan, kinds: Sequence[Kind]) -> BatchPlan | None:
    """The next larger micro-batch, else the next smaller one, with which no step has a
    lone sample.
    """
    share = -(-batch.effective // batch.world_size)
    for micro in [*range(batch.micro + 1, share + 1), *range(batch.micro - 1, 1, -1)]:
        steps = -(-share // micro)
        cut = replace(batch, accumulation_steps=steps, micro=-(-share // steps))
        if not any(has_lone_sample(cut, kind.samples) for kind in kinds):
            return cut
    return None
