"""The windows of a run, fetched and counted one step ahead.

So the sums over the ranks are there when a step begins: no rank waits for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from train.batch.window import MicroBatches, Window
from train.data.device_prefetch import Placeable
from train.data.in_step import InStep, LateWeights, LossWeight, Spare
from train.data.shares import RankShare
from train.distributed.ranks import Ranks, Sum


@dataclass(frozen=True)
class _Ahead:
    """A window whose sums over the ranks are still under way."""

    k: int  # the step
    share: RankShare | None  # None: it could not be read
    micro_batches: MicroBatches | None
    late: LateWeights | None
    failure: Exception | None
    # [ranks that failed, ranks that were asked to stop, samples, tokens, weight of each term]
    message: Sum

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass(frozen=True)
class Windows:
    """The windows of steps first .. last, one for each of `shares`.

    They end earlier, on every rank before the same step, once `stop_requested()` was true on any of
    them. A failure to read is raised on every rank before the step it belongs to. Where samples are
    read in the step itself, no rank updates from that step on, until all raise it (one rank alone
    raises it at once).
    """

    shares: Iterator[RankShare]
    ranks: Ranks
    terms: Sequence[str]  # of the loss, in an order that all ranks share
    loss_weight: LossWeight
    stop_requested: Callable[[], bool]
    last: int
    first: int = 1
    seen: int = 0  # samples, over all ranks, before the first of these steps
    # Raises what keeps this rank from training: all ranks end by it.
    check: Callable[[], None] = lambda: None
    announce: Callable[[Placeable], MicroBatches] = lambda micro_batches: micro_batches
    """Takes those of each step in order, one step before they are trained, and gives the same."""
    spare: Spare | None = None  # needed for samples that are read in the step itself

    def __iter__(self) -> Iterator[Window]:
        if self.first > self.last:
            return
        ahead: _Ahead | None = self._start(self.first)
        seen = self.seen
        while ahead is not None:
            # Before the present one is waited for: its message travels during a whole step.
            following = self._start(ahead.k + 1) if ahead.k < self.last else None
            window = self._finish(ahead, seen)
            if window is None:
                return
            seen += window.samples
            self.ranks.pulse.window = window.k
            yield window
            ahead = following

    def _start(self, k: int) -> _Ahead:
        """Read and count a step, and begin to add up over the ranks."""
        share: RankShare | None = None
        micro_batches: MicroBatches | None = None
        late: LateWeights | None = None
        failure: Exception | None = None
        stop = False
        samples = 0
        tokens = 0
        numbers = [0.0 for _ in self.terms]
        try:
            # In here, where an error travels with the message of the window: all ranks then end by
            # it.
            stop = self.stop_requested()
            if self.ranks.alone.error is not None:
                raise self.ranks.alone.error
            if self.ranks.world_size > 1:
                self.check()
            share = next(self.shares)
            samples = sum(share.sizes)
            tokens = share.tokens or 0
            if share.is_late:
                late = LateWeights(self.terms, self.ranks)
            elif samples:
                # All at once, since weights add up over micro-batches.
                weights = share.weights(self.loss_weight)
                # In the order of the terms, not of the mapping: the ranks add them up by position.
                numbers = [weights[term] for term in self.terms]
            placeable = self._in_step(share, late) if share.is_deferred else share
            micro_batches = self.announce(placeable)
        # Sent to the other ranks first: they would wait for this one in the next reduction.
        except Exception as error:
            failure = error
            if share is None and self.ranks.world_size > 1:
                # Read all the same: other ranks may wait for what this one hands them.
                with suppress(Exception):
                    next(self.shares)
        # One message for all of it, and in any case: a rank that sent none would leave the others
        # waiting.
        message = self.ranks.start_sum([failure is not None, stop, samples, tokens, *numbers])
        return _Ahead(
            k=k,
            share=share,
            micro_batches=micro_batches,
            late=late,
            failure=failure,
            message=message,
        )

    def _in_step(self, share: RankShare, late: LateWeights | None) -> InStep:
        # One rank alone raises what it cannot read.
        spare = self.spare
        if self.ranks.world_size == 1:
            spare = None
        return InStep(share, self.loss_weight, late, spare)

    @cached_property
    def _weight_of_sample(self) -> float:
        if self.spare is None:
            return 1.0
        return self.spare.weight(self.loss_weight)

    def _finish(self, ahead: _Ahead, seen: int) -> Window | None:
        failed, stop, samples, tokens, *weights = ahead.message.wait()
        if failed:  # every rank ends by the same error, which names the rank that met it
            self.ranks.together(ahead.check)
        if stop:
            return None
        assert ahead.share is not None  # else there was a failure
        assert ahead.micro_batches is not None
        # Sums over the ranks: what each loss is divided by, so that ranks of unequal weight count
        # right.
        by_term: Mapping[str, float] = dict(zip(self.terms, weights, strict=True))
        if ahead.late is not None:
            by_term = ahead.late.expecting(samples * self._weight_of_sample)
        return Window(
            k=ahead.k,
            epoch=ahead.share.epoch,
            micro_batches=ahead.micro_batches,
            samples=int(samples),
            weights=by_term,
            last_of_epoch=ahead.share.last_of_epoch,
            seen=seen,
            tokens=None if ahead.share.tokens is None else int(tokens),
        )
