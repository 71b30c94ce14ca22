"""The windows of a run: fetched and counted one step ahead, so that what the ranks must agree on costs no waiting."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from train.data.parts import Part, pieces
from train.ranks import Ranks, Sum
from train.window import Batch, MicroBatch, Window


@dataclass(frozen=True)
class _Ahead:
    """A window whose sums over the ranks are still under way."""

    k: int
    part: Part | None  # None: it could not be read
    micro_batches: tuple[MicroBatch, ...]
    failure: Exception | None
    message: Sum  # [ranks that failed, ranks that were asked to stop, samples, weight of each term]

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass(frozen=True)
class Windows:
    """Iterates over the windows of steps first .. last, one for each of `parts`.

    It ends earlier, on every rank before the same step, once `stop_requested()` was true on any of them. A failure to
    read is raised on every rank before the step it belongs to.
    """

    parts: Iterator[Part]
    ranks: Ranks
    terms: Sequence[str]  # of the loss, in an order that all ranks share
    loss_weight: Callable[[Batch], Mapping[str, float]]  # by term
    stop_requested: Callable[[], bool]
    pin_memory: bool
    last: int
    first: int = 1
    expect: Callable[[Sequence[MicroBatch]], None] | None = None  # is told the micro-batches of each step, a step ahead

    def __iter__(self) -> Iterator[Window]:
        ahead = self._start(self.first) if self.first <= self.last else None
        while ahead is not None:
            following = self._start(ahead.k + 1) if ahead.k < self.last else None
            window = self._finish(ahead)
            if window is None:
                return
            yield window
            ahead = following

    def _start(self, k: int) -> _Ahead:
        part = failure = None
        micro_batches: tuple[MicroBatch, ...] = ()
        numbers = [0.0 for _ in self.terms]
        try:
            part = next(self.parts)
            if any(part.sizes):  # what adds up over micro-batches may as well be counted at once
                weights = self.loss_weight(part.share)
                numbers = [weights[term] for term in self.terms]
            micro_batches = self._cut(part)
            if self.expect:
                self.expect(micro_batches)
        except Exception as error:  # told to the other ranks first: they would wait for this one in the next reduction
            failure = error
        samples = sum(micro_batch.samples for micro_batch in micro_batches)
        message = self.ranks.start_sum([failure is not None, self.stop_requested(), samples, *numbers])
        return _Ahead(k, part, micro_batches, failure, message)

    def _cut(self, part: Part) -> tuple[MicroBatch, ...]:
        sizes, batches = part.sizes, part.batches or (part.share, part.filler)
        if self.pin_memory:
            batches = tuple({name: t.pin_memory() for name, t in batch.items()} for batch in batches)
        if not part.batches:
            share, filler = batches
            if len(sizes) == 1 and sizes[0]:
                return (MicroBatch(share, sizes[0]),)
            batches = pieces(share, sizes, filler)
        return tuple(map(MicroBatch, batches, sizes))

    def _finish(self, ahead: _Ahead) -> Window | None:
        failed, stop, samples, *weights = ahead.message.wait()
        if failed:  # every rank ends by the same error, told with the rank that met it
            self.ranks.together(ahead.check)
        if stop:
            return None
        assert ahead.part is not None  # else there was a failure
        return Window(
            k=ahead.k,
            epoch=ahead.part.epoch,
            micro_batches=ahead.micro_batches,
            samples=int(samples),
            weights=dict(zip(self.terms, weights, strict=True)),
            last_of_epoch=ahead.part.last_of_epoch,
        )
