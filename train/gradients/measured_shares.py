"""batch.shares=measured: ranks take parts of a step by the speed that their first steps have shown.

The first STEPS + 1 steps of a start are shared equally; the time of each rank's own forward and
backward passes, up to its last local gradient, is taken on all but the first of them, on which
things warm up. One message after the last of them fixes the shares, on all ranks alike, from the
step after the next on: one window is always read ahead. A checkpoint holds them; on another number
of ranks they are measured again.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from train.batch import BatchPlan
from train.batch.window import Place, Window
from train.config import Config
from train.config.recipe import Batch as BatchConfig
from train.data.shares import RankShare
from train.distributed.ranks import Ranks
from train.errors import UserError
from train.gradients.shrink import STEPS_TO_PROVE
from train.parts import Part
from train.plan.arithmetic import arithmetic
from train.plan.run_plan import RunPlan
from train.plan.smaller import can_shrink
from train.plan.unequal import with_measured_shares
from train.step import ComputeGradient, Learner

STEPS = 5
FINE = 1000
"""Weight of the fastest rank."""


class Start(Protocol):
    """How far a run had come when it was started, or resumed."""

    step: int

    @property
    def place(self) -> Place: ...


class Report(Protocol):
    @property
    def progress(self) -> Start: ...

    def say(self, line: str) -> None: ...


Open = Callable[[BatchPlan, Place], Iterator[RankShare]]


class NoTime(UserError):
    """A rank's own time cannot be told from that of the others."""


def part(
    config: Config, plan: RunPlan, learner: Learner, ranks: Ranks, report: Report, open_shares: Open
) -> Part:
    if config.batch.shares != "measured" or ranks.world_size == 1:
        return Part(name="measured_shares")
    if learner.parallel.is_sharded:
        raise NoTime(
            "batch.shares=measured needs the time of each rank by itself, and under FSDP2 ranks "
            "wait for each other in each block. State the shares: batch.shares=[3,1] or the like"
        )
    batch = config.batch
    if plan.shrunk is not None:
        batch = replace(batch, micro=plan.batch.micro)

    def on_change() -> None:
        if can_shrink(plan, config):
            # the step that comes is still an equal one
            learner.parallel.reduce_late(1 + STEPS_TO_PROVE)

    shares = MeasuredShares(batch, plan.batch, ranks, report, open_shares, on_change)
    return Part(name="measured_shares", gradient=shares.around, shares=shares.shares, state=shares)


class MeasuredShares:
    def __init__(
        self,
        config: BatchConfig,
        plan: BatchPlan,
        ranks: Ranks,
        report: Report,
        open_shares: Open,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called on all ranks, one step before the first with new shares."""
        self._config = config
        self._on_change = on_change
        self._plan = plan
        self._ranks = ranks
        self._say = report.say
        self._open = open_shares
        self._place = report.progress.place
        self._first = report.progress.step + 1
        self._last = self._first + STEPS  # that is measured
        self._seconds: list[float] = []  # per sample, of each measured step
        self._weights: list[int] | None = None

    def shares(self, equal: Iterator[RankShare]) -> Iterator[RankShare]:
        """`equal` until the weights are there; all ranks change at the same step."""
        place, k = self._place, self._first
        if self._weights is None:
            for share in equal:
                yield share
                place = _after(place, share)
                k += 1
                if k > self._last + 1:
                    break
        getattr(equal, "close", lambda: None)()  # its workers end
        weights = self._weights or [1] * self._ranks.world_size
        yield from self._open(with_measured_shares(self._plan, weights, self._config), place)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, timed on the steps that count."""

        def timed(learner: Learner, window: Window) -> Tensor:
            if window.k > self._last or self._weights is not None:
                return compute_gradient(learner, window)
            losses, seconds = self._timed(compute_gradient, learner, window)
            own = sum(window.micro_batches.sizes)
            if window.k > self._first and own:
                self._seconds.append(seconds / own)
            if window.k == self._last:
                self._agree()
            return losses

        return timed

    def _timed(
        self, compute_gradient: ComputeGradient, learner: Learner, window: Window
    ) -> tuple[Tensor, float]:
        """(losses, seconds up to the last local gradient): what follows may be waiting for other
        ranks.
        """
        is_cuda = learner.device.type == "cuda"
        marks = (
            [cast(Any, torch.cuda.Event)(enable_timing=True) for _ in range(2)] if is_cuda else []
        )
        start = end = time.perf_counter()

        def on_gradient(_: Tensor) -> None:
            nonlocal end
            if is_cuda:
                marks[1].record()
            end = time.perf_counter()

        hooks = [
            cast(Any, p).register_post_accumulate_grad_hook(on_gradient) for p in learner.parameters
        ]
        if is_cuda:
            marks[0].record()
        try:
            losses = compute_gradient(learner, window)
        finally:
            for hook in hooks:
                hook.remove()
        if is_cuda:
            marks[1].synchronize()
            return losses, marks[0].elapsed_time(marks[1]) / 1000
        return losses, end - start

    def _agree(self) -> None:
        """All ranks come here in the same step. One that had no samples counts as the slowest."""
        ranks = self._ranks
        own = [0.0] * ranks.world_size
        own[ranks.rank] = statistics.median(self._seconds) if self._seconds else 0.0
        seconds = ranks.sum(own)
        known = [each for each in seconds if each > 0]
        if not known:
            return
        seconds = [each or max(known) for each in seconds]
        self._weights = [max(1, round(FINE * min(known) / each)) for each in seconds]
        self._on_change()
        shown = " and ".join(f"{1000 * each:.3g}" for each in seconds)
        batch = with_measured_shares(self._plan, self._weights, self._config)
        self._say(
            f"shares    measured: {shown} ms a sample; from step {self._last + 2:,} on "
            f"{arithmetic(batch)}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = state["weights"]
        if weights is not None and len(weights) == self._ranks.world_size:
            self._weights = list(weights)


def _after(place: Place, share: RankShare) -> Place:
    """Where the step after a share's begins."""
    seen = place.seen + share.of_step
    if share.last_of_epoch:
        return Place(share.epoch + 1, 0, seen)
    return Place(share.epoch, place.samples + share.of_step, seen)
