"""What a run trains and evaluates on, whatever its samples are read from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from train.batch import Assignment, BatchPlan, assign
from train.batch.order import Ids
from train.batch.window import Batch, Place
from train.data.shares import RankShare


class TrainingSet(Protocol):
    """Samples to train on, in one global order that seed and epoch decide.

    Members with a body are defaults, for sets that inherit from this class: those of samples that
    are neither wrapped nor cut to their length.
    """

    @property
    def size(self) -> int | None:
        """Samples of an epoch; None where that is unknown before it has ended."""
        ...

    def first(self, seed: int, count: int) -> Batch:
        """The first `count` samples of the first epoch, or all where there are fewer.

        The same on every rank.
        """
        ...

    def shares(
        self, plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
    ) -> Iterator[RankShare]:
        """This rank's shares of one step after the other, without end, from `position` on.

        `overfit`: the steps 1 .. overfit again and again.
        """
        ...

    def deferred(self, weighed: Sequence[str]) -> "TrainingSet":
        """The same samples, read when their micro-batch is asked for.

        `weighed`: the columns that their weights are counted from, which are read ahead.
        """
        ...

    @property
    def is_weighed(self) -> bool:
        """Of deferred samples: the columns of their weights can be read without the others.

        Else the weights of a step are unknown until its last micro-batch is read.
        """
        ...

    def trial(self, seed: int, count: int) -> Batch:
        """A few samples to try things on before the first step, with all of their padding."""
        return self.first(seed, count)

    def one_step(self, plan: BatchPlan, seed: int) -> "TrainingSet":
        """The same samples, for the first step alone, in the micro-batches of another plan."""
        return self

    def micro_steps(self, plan: BatchPlan) -> tuple[int, int] | None:
        """Fewest and most micro-batches of a rank in a full step; None: those of the plan."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """For the screen."""
        return ()

    @property
    def trim(self) -> Callable[[Batch], Batch] | None:
        """Cuts padding off a micro-batch, as is done to those of `shares`."""
        return None

    @property
    def innermost(self) -> "TrainingSet":
        """The samples as they are read, without what is done to them afterwards."""
        return self


class EvaluationSet(Protocol):
    """Samples to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, ids: Ids, size: int) -> Iterator[Batch]:
        """The samples `ids`, in that order, `size` at a time."""
        ...


def step_sizes(plan: BatchPlan) -> list[int]:
    """Samples of a full step, over all ranks, in each stage of the plan."""
    return [plan.effective, *(effective for _, effective in plan.stages)]


def assignments(
    plan: BatchPlan, seed: int, rank: int, position: Place, overfit: int | None
) -> Iterator[tuple[int, Assignment]]:
    """(epoch, which samples) of one step after the other, of data whose size is known.

    It may begin anywhere.
    """
    start = start_of_overfit(position, plan, overfit)
    epoch = start.epoch
    taken = start.samples  # of this epoch
    seen = start.seen
    while True:
        # Only stages make another plan of it: the same for all steps costs nothing.
        stage = plan.at(seen) if plan.stages else plan
        assignment = assign(stage, seed, epoch, taken, rank)
        yield epoch, assignment
        taken += assignment.samples
        seen += assignment.samples
        # The same steps again, and not a second epoch of them in another order.
        is_last_to_overfit = overfit is not None and taken == overfit * plan.effective
        if assignment.last_of_epoch or is_last_to_overfit:
            epoch = 0 if overfit else epoch + 1
            taken = 0


def start_of_overfit(position: Place, plan: BatchPlan, overfit: int | None) -> Place:
    """Where training begins; with data.overfit, in the first epoch, whose steps are repeated."""
    if not overfit:
        return position
    return Place(epoch=0, samples=position.samples % (overfit * plan.effective))
