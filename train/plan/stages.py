"""batch.schedule: an effective batch that follows the samples seen."""

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from train.batch import BatchPlan, make_plan
from train.plan.unequal import with_shares

FOREVER = sys.maxsize


@dataclass(frozen=True)
class Staircase(BatchPlan):
    """A plan in stages. A stage begins with the first step that starts at or after its sample.

    `effective` and `accumulation_steps` are those of the first stage. `micro` is the largest
    micro-batch of any stage: a step grows by accumulation, so memory stays, but for the gradients
    that a lone rank holds between micro-steps.
    """

    def at(self, seen: int) -> BatchPlan:
        index = bisect_right(self.stages, seen, key=lambda stage: stage[0]) - 1
        _, effective = self.stages[index]
        # Without drop_tail, which a schedule refuses: what is skipped would need a meaning of its
        # own where steps differ.
        stage = make_plan(
            effective,
            self.micro,
            None,
            world_size=self.world_size,
            dataset_size=self.dataset_size,
        )
        return with_shares(stage, self.weights, self.limits) if self.weights else stage

    def recut(self, micro: int) -> BatchPlan:
        cut = replace(self, micro=micro, limits=tuple(min(micro, limit) for limit in self.limits))
        return replace(cut, accumulation_steps=cut.at(0).accumulation_steps)

    @property
    def steps_per_epoch(self) -> None:
        """Another number in each epoch in which a stage begins."""

    @property
    def tail_samples(self) -> None:
        """Likewise."""

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yields (number of steps, samples of each), from the first step on, without end.

        Of a stream as if its epoch had no end.
        """
        size = self.dataset_size or FOREVER
        seen = 0
        in_epoch = 0
        # Each stage with the beginning of the next one, at which it ends.
        for (_, effective), (end, _) in pairwise([*self.stages, (FOREVER, 0)]):
            while seen < end:
                # Full steps until the stage ends, or the epoch: the last one may overshoot the
                # stage, but not the epoch.
                # -(-n // d) rounds up.
                until_end = -((seen - end) // effective)
                count = min(until_end, (size - in_epoch) // effective)
                yield count, effective
                seen += count * effective
                in_epoch += count * effective
                # What is left of the epoch is a step of its own. Where the stage has ended, the
                # next one takes it, in steps of its own size.
                tail = size - in_epoch
                if seen < end and 0 < tail < effective:
                    yield 1, tail
                    seen += tail
                    in_epoch = size
                if in_epoch == size:
                    in_epoch = 0

    def samples_after(self, steps: int) -> int:
        # runs() has no end: the loop is left by break, within the run of steps that holds the last
        # one.
        samples = 0
        for count, size in self.runs():
            if steps <= count:
                break
            steps -= count
            samples += count * size
        return samples + steps * size

    def steps_for(self, samples: float) -> int:
        steps = 0
        for count, size in self.runs():
            if samples <= count * size:
                break
            steps += count
            samples -= count * size
        return steps + int(-(-samples // size))

    def first_steps(self) -> list[int]:
        """Of each stage, counted from 1."""
        return [self.steps_for(start) + 1 for start, _ in self.stages]


def largest_effective(plan: BatchPlan) -> int:
    return max((effective for _, effective in plan.stages), default=plan.effective)


def in_stages(first: BatchPlan, stages: Mapping[int, int], micro: int | None) -> BatchPlan:
    """The plan of all stages, from that of the first one; `micro`: the limit, if one is stated."""
    if len(stages) < 2:
        return first
    values = {field.name: getattr(first, field.name) for field in fields(BatchPlan)}
    values["stages"] = tuple(sorted(stages.items()))
    # What is stated holds in every stage. No stage has a larger share than the largest one.
    if micro:
        largest_share = max(first.shares(max(stages.values())))
        values["micro"] = min(micro, largest_share)
    plan = Staircase(**values)
    # Each rank has a limit of its own: the largest that any stage makes of them.
    if plan.weights:
        plan = replace(plan, micro=max(plan.at(start).micro for start in stages))
    return plan
