"""Micro-batches that are read while their step is computed.

Their weights are counted then, and one that cannot be read must not leave other ranks waiting.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from train.batch.window import Batch, MicroBatch
from train.data.deferred import batch_size
from train.data.micro_batches import WrappedMicroBatches
from train.data.pixels import as_a_task_gets_it
from train.data.shares import RankShare
from train.distributed.alone import Alone
from train.distributed.ranks import Ranks

LossWeight = Callable[[Batch], Mapping[str, float]]
"""By term of the loss."""


class LateWeights(dict[str, float]):
    """The weight of a step's only term, known once all ranks have computed their last micro-batch.

    Until then a power of two near to the expected weight: to divide by it changes no bit of a
    gradient but its exponent. The ranks add it up after the reduction, not before: one that fails
    in mid-step sends that to the others first, and its messages would come in another order than
    theirs.
    """

    def __init__(self, terms: Sequence[str], ranks: Ranks) -> None:
        # One term alone: several would each need a divisor, and the gradient has one factor.
        (self._term,) = terms
        super().__init__({self._term: 1.0})
        self._ranks = ranks
        self._local = 0.0  # of this rank's micro-batches that were read so far
        self._is_settled = False

    def __reduce__(self) -> tuple[type[dict[str, float]], tuple[dict[str, float]]]:
        """A copy that is kept of a step is its weight alone."""
        return dict, (dict(self),)

    def expecting(self, weight: float) -> "LateWeights":
        """The same; `weight` is the expected one, on all ranks alike."""
        self[self._term] = 2.0 ** round(math.log2(weight)) if weight > 0 else 1.0
        return self

    def begin(self) -> None:
        """The first micro-batch is read, perhaps again."""
        self._local = 0.0

    def add(self, weights: Mapping[str, float]) -> None:
        self._local += weights[self._term]

    def settle(self) -> float:
        """The factor by which the gradient is to be multiplied.

        From now on the weight is that of the step: a gradient that is computed again needs no
        factor.
        """
        if self._is_settled:
            return 1.0
        (weight,) = self._ranks.sum([self._local])
        # A step in which nothing counts is skipped, as one whose gradient is not finite.
        factor = self[self._term] / weight if weight else math.nan
        self[self._term] = weight
        self._is_settled = True
        return factor


class Spare:
    """A few samples, the same on every rank, that stand for those which a rank could not read.

    They also show what a sample's weight is like.
    """

    def __init__(self, samples: Batch, alone: Alone) -> None:
        self._samples = samples
        self._alone = alone

    def weight(self, loss_weight: LossWeight) -> float:
        """Of a sample, on average."""
        return sum(loss_weight(self._samples).values()) / batch_size(self._samples)

    @property
    def is_needed(self) -> bool:
        return self._alone.left_out

    def after(self, error: Exception) -> None:
        """A micro-batch could not be read: the other ranks hear of it with their next message."""
        # Raised when the ranks next agree (train/distributed/alone.py), and not here, in mid-step.
        self._alone.keep(error)
        self._alone.left_out = True

    def micro_batch(self, size: int) -> MicroBatch:
        """Of at most `size` samples, with a weight of NaN."""
        # NaN times any loss: after the reduction the gradient is NaN on every rank, so none of them
        # updates. Its micro-batch runs all the same, so none waits either.
        samples = {name: column[: max(1, size)] for name, column in self._samples.items()}
        return MicroBatch(samples, samples=0, filler_factor=math.nan)


class InStep(WrappedMicroBatches):
    """Micro-batches of a share that are read in the step (train.batch.window.MicroBatches)."""

    def __init__(
        self,
        share: RankShare,
        loss_weight: LossWeight,
        late: LateWeights | None,
        spare: Spare | None,
    ) -> None:
        """`spare`: computed from a micro-batch on that cannot be read, so that no rank updates.

        Else the other ranks would wait for this one in the reduction. None: the error is raised.
        """
        super().__init__(share)
        self._share = share
        self._loss_weight = loss_weight
        self._late = late
        self._spare = spare

    def __iter__(self) -> Iterator[MicroBatch]:
        read = iter(self._share)
        if self._late is not None:
            self._late.begin()
        # By the sizes and not by what can be read: there must be as many as on the other ranks.
        for size in self.sizes:
            yield self._next(read, size)

    def _next(self, read: Iterator[MicroBatch], size: int) -> MicroBatch:
        spare = self._spare
        if spare is not None and spare.is_needed:
            return spare.micro_batch(size)
        try:
            micro_batch = next(read)
            if self._late is not None and size:
                # Of a filler nothing counts: its size is 0.
                batch = as_a_task_gets_it(micro_batch.batch, micro_batch.pixels)
                self._late.add(self._loss_weight(batch))
        except Exception as error:
            if spare is None:
                raise
            spare.after(error)
            return spare.micro_batch(size)
        return micro_batch

    def recut(self, micro: int) -> "InStep":
        return self._with(self._share.recut(micro))

    def placed(self, place: Callable[[Batch], Batch]) -> "InStep":
        return self._with(self._share.placed(place))

    def _with(self, share: RankShare) -> "InStep":
        if share is self._share:
            return self  # which may be announced
        return InStep(share, self._loss_weight, self._late, self._spare)
