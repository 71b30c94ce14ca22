"""Any two of effective batch, micro-batch and accumulation steps give the third."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from train.errors import UserError


class PlanError(UserError):
    """The numbers contradict each other; the message ends with a line to paste."""


@dataclass(frozen=True)
class BatchPlan:
    """How each step is executed. The effective batch is mathematics, all else is execution."""

    effective: int  # samples per optimizer step, over all ranks
    micro: int  # the most samples that one rank puts through the model at once
    accumulation_steps: int  # micro-batches of one rank per full step
    world_size: int
    # None, as are the numbers of an epoch: a stream, whose length nobody knows
    dataset_size: int | None
    drop_tail: bool
    weights: tuple[int, ...] = ()  # of the ranks' shares, where they are not equal: plan/unequal.py
    limits: tuple[int, ...] = ()  # with them: the largest micro-batch that each rank may have
    # (samples seen, effective batch from there on): plan/stages.py
    stages: tuple[tuple[int, int], ...] = ()

    def at(self, seen: int) -> "BatchPlan":
        """The plan of a step that starts when `seen` samples have been trained, over all ranks."""
        return self

    @property
    def steps_per_epoch(self) -> int | None:
        if self.dataset_size is None:
            return None
        full, tail = divmod(self.dataset_size, self.effective)
        return full + (tail > 0 and not self.drop_tail)

    @property
    def tail_samples(self) -> int | None:
        """Samples of an epoch's last step where it is ragged, else 0."""
        return None if self.dataset_size is None else self.dataset_size % self.effective

    @property
    def samples_per_epoch(self) -> int | None:
        if self.dataset_size is None or not self.drop_tail:
            return self.dataset_size
        return self.dataset_size - self.dataset_size % self.effective

    def samples_after(self, steps: int) -> int:
        """Samples seen over all ranks after `steps` optimizer steps; of a stream: at most."""
        if self.steps_per_epoch is None or self.samples_per_epoch is None:
            return steps * self.effective
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.samples_per_epoch + min(rest * self.effective, self.samples_per_epoch)

    def steps_for(self, samples: float) -> int:
        """The step that reaches `samples`: the smallest k with samples_after(k) >= samples."""
        if self.steps_per_epoch is None or self.samples_per_epoch is None:
            return math.ceil(samples / self.effective)
        epochs, rest = divmod(samples, self.samples_per_epoch)
        return int(epochs) * self.steps_per_epoch + math.ceil(rest / self.effective)

    def shares(self, samples: int) -> list[int]:
        """How many of a step's samples each rank takes, in the order of the data."""
        if self.weights:
            return list(in_proportion(samples, self.weights))
        return split_evenly(samples, self.world_size)

    def recut(self, micro: int) -> "BatchPlan":
        """The same steps in micro-batches of at most `micro` samples."""
        largest = max(self.shares(self.effective))
        steps = math.ceil(largest / micro)
        return replace(self, micro=math.ceil(largest / steps), accumulation_steps=steps)


def ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"


def make_plan(
    effective: int | None,
    micro: int | str,
    accumulation_steps: int | None,
    *,
    world_size: int,
    dataset_size: int | None,
    drop_tail: bool = False,
) -> BatchPlan:
    """Work out the third number from the two that are stated.

    `micro` is a number, or "all" or "auto", which count as not stated.
    Raises PlanError where they contradict each other or leave no step to train.
    """
    stated = None if micro in ("all", "auto") else int(micro)
    if effective is None:
        if stated is None or accumulation_steps is None:
            raise PlanError(
                "batch: two of effective, micro and accumulation_steps are needed. Add: "
                "batch.effective=64"
            )
        effective = stated * accumulation_steps * world_size
    largest_share = share(effective, 0, world_size)
    if accumulation_steps is None:
        steps = 1
        if stated:
            steps = math.ceil(largest_share / stated)
    else:
        steps = accumulation_steps
        _check_consistent(effective, stated, steps, largest_share, world_size)
    plan = BatchPlan(
        effective=effective,
        micro=math.ceil(largest_share / steps),
        accumulation_steps=steps,
        world_size=world_size,
        dataset_size=dataset_size,
        drop_tail=drop_tail,
    )
    if plan.steps_per_epoch == 0:
        raise PlanError(
            f"the data has {dataset_size} samples, fewer than batch.effective={effective}, and "
            "data.drop_tail leaves them out: no step to train. Set: data.drop_tail=false (or "
            f"batch.effective={max(1, dataset_size or 1)})"
        )
    return plan


def _check_consistent(
    effective: int, micro: int | None, steps: int, largest_share: int, world_size: int
) -> None:
    if steps > largest_share:
        raise PlanError(
            f"batch.accumulation_steps={steps}, but batch.effective={effective} leaves a rank at "
            f"most {largest_share} samples ({ranks(world_size)}): more micro-batches than samples. "
            f"Set: batch.accumulation_steps={largest_share}"
        )
    needed = math.ceil(largest_share / steps)
    if micro is not None and math.ceil(largest_share / micro) != steps:
        raise PlanError(
            f"batch.effective={effective}, micro={micro} and accumulation_steps={steps} contradict "
            f"each other on {ranks(world_size)}: a rank's share is up to {largest_share} samples, "
            f"which is {math.ceil(largest_share / micro)} micro-batches of {micro}, or {steps} of "
            f"{needed}. State two of the three: batch.effective={effective} batch.micro={micro}"
        )


def share(samples: int, rank: int, world_size: int) -> int:
    """Samples of one rank, as even as possible, the larger shares first: 100 on 3: 34, 33, 33."""
    return samples // world_size + (rank < samples % world_size)


def first_of(samples: int, rank: int, world_size: int) -> int:
    """Where a rank's share begins, counted from the first sample."""
    return rank * (samples // world_size) + min(rank, samples % world_size)


@lru_cache(maxsize=8)  # asked for several times a step, also where thousands of ranks have weights
def in_proportion(samples: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """`samples` divided in proportion to `weights`, by largest remainders: the sum is exact."""
    total = sum(weights)
    parts = [samples * weight // total for weight in weights]
    # A stable sort: of equal remainders the first ranks get what is left.
    by_remainder = sorted(range(len(weights)), key=lambda i: -(samples * weights[i] % total))
    for i in by_remainder[: samples - sum(parts)]:
        parts[i] += 1
    return tuple(parts)


def split_evenly(samples: int, count: int) -> list[int]:
    """`samples` in `count` parts that differ by at most one, the larger ones first."""
    each, larger = divmod(samples, count)
    return [each + 1] * larger + [each] * (count - larger)
