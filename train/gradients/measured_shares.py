"""batch.shares=measured: ranks take parts of a step by the speed that their first steps have shown.

The first STEPS + 1 steps of a start are shared equally, and all but the first of them, on which
things warm up, are timed: each rank's own forward and backward passes, up to its last local
gradient. One message after the last of them fixes the shares on all ranks alike. They hold from the
step after the next on, since one window is always read ahead. A checkpoint holds them; on another
number of ranks they are measured again.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
"""That are timed."""
LARGEST_WEIGHT = 1000
"""Of the fastest rank."""


class Start(Protocol):
    """How far a run had come when it was started, or resumed."""

    step: int

    @property
    def place(self) -> Place: ...


class Report(Protocol):
    @property
    def progress(self) -> Start: ...

    def say(self, line: str) -> None: ...


OpenShares = Callable[[BatchPlan, Place], Iterator[RankShare]]
"""This rank's shares of one step after the other, from a position in the data on."""


class RankTimeUnknown(UserError):
    """The time of a rank cannot be separated from that of the others."""


@dataclass(frozen=True)
class TimedGradient:
    losses: Tensor
    seconds: float  # up to the last local gradient


def part(
    config: Config,
    plan: RunPlan,
    learner: Learner,
    ranks: Ranks,
    report: Report,
    open_shares: OpenShares,
) -> Part:
    if config.batch.shares != "measured" or ranks.world_size == 1:
        return Part(name="measured_shares")
    if learner.parallel.is_sharded:
        raise RankTimeUnknown(
            "batch.shares=measured needs the time of each rank by itself, and under FSDP2 ranks "
            "wait for each other in each block. State the shares: batch.shares=[3,1] or the like"
        )
    batch = config.batch
    if plan.shrunk is not None:
        # An earlier start ran out of memory: the new shares, too, are to be cut into the size that
        # fitted.
        batch = replace(batch, micro=plan.batch.micro)

    def on_change() -> None:
        if can_shrink(plan, config):
            # One more than for Shrink: the step that comes next still has equal shares.
            learner.parallel.reduce_late(1 + STEPS_TO_PROVE)

    shares = MeasuredShares(
        config=batch,
        plan=plan.batch,
        ranks=ranks,
        report=report,
        open_shares=open_shares,
        on_change=on_change,
    )
    return Part(name="measured_shares", gradient=shares.around, shares=shares.shares, state=shares)


class MeasuredShares:
    def __init__(
        self,
        *,
        config: BatchConfig,
        plan: BatchPlan,
        ranks: Ranks,
        report: Report,
        open_shares: OpenShares,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called on all ranks, one step before the first with new shares."""
        self._config = config
        self._on_change = on_change
        self._plan = plan
        self._ranks = ranks
        self._say = report.say
        self._open_shares = open_shares
        self._start = report.progress.place
        self._first_step = report.progress.step + 1
        self._last_timed_step = self._first_step + STEPS
        self._seconds_per_sample: list[float] = []  # of each timed step
        self._weights: list[int] | None = None

    def shares(self, equal: Iterator[RankShare]) -> Iterator[RankShare]:
        """`equal` until the weights are there; all ranks change at the same step."""
        position = self._start
        if self._weights is None:
            # A fixed step, by which the weights are set: one window is read ahead, and all ranks
            # have to change at the same one.
            last_equal_step = self._last_timed_step + 1
            k = self._first_step
            # The position is counted here, not asked of the iterator: that reads ahead of the
            # training.
            for share in equal:
                yield share
                position = _after(position, share)
                k += 1
                if k > last_equal_step:
                    break
        # Its worker processes end, where it has some.
        getattr(equal, "close", lambda: None)()
        weights = self._weights or [1] * self._ranks.world_size
        yield from self._open_shares(
            with_measured_shares(self._plan, weights, self._config), position
        )

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, timed on the steps that count."""

        def compute_timed(learner: Learner, window: Window) -> Tensor:
            if window.k > self._last_timed_step or self._weights is not None:
                return compute_gradient(learner, window)
            timed = _timed(compute_gradient, learner, window)
            samples = sum(window.micro_batches.sizes)
            is_warm = window.k > self._first_step
            if is_warm and samples:
                self._seconds_per_sample.append(timed.seconds / samples)
            if window.k == self._last_timed_step:
                self._agree()
            return timed.losses

        return compute_timed

    def _agree(self) -> None:
        """All ranks come here in the same step. One that had no samples counts as the slowest."""
        ranks = self._ranks
        # One place for each rank: the sum over the ranks then holds the time of each.
        own = [0.0] * ranks.world_size
        if self._seconds_per_sample:
            # The median: one slow step, by another process or a page fault, decides nothing.
            own[ranks.rank] = statistics.median(self._seconds_per_sample)
        seconds = ranks.sum(own)
        measured_seconds = [each for each in seconds if each > 0]
        if not measured_seconds:
            return
        slowest = max(measured_seconds)
        fastest = min(measured_seconds)
        seconds = [each or slowest for each in seconds]
        # At least 1: a weight that is rounded to 0 would leave a rank without samples for good.
        self._weights = [max(1, round(LARGEST_WEIGHT * fastest / each)) for each in seconds]
        self._on_change()
        times = " and ".join(f"{1000 * each:.3g}" for each in seconds)
        batch = with_measured_shares(self._plan, self._weights, self._config)
        self._say(
            f"shares    measured: {times} ms a sample; from step {self._last_timed_step + 2:,} on "
            f"{arithmetic(batch)}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Shares of another number of ranks say nothing about these.
        weights = state["weights"]
        if weights is not None and len(weights) == self._ranks.world_size:
            self._weights = list(weights)


def _timed(compute_gradient: ComputeGradient, learner: Learner, window: Window) -> TimedGradient:
    """Only up to the last local gradient: what follows may be waiting for other ranks."""
    is_cuda = learner.device.type == "cuda"
    if is_cuda:
        begin = cast(Any, torch.cuda.Event)(enable_timing=True)
        last_gradient = cast(Any, torch.cuda.Event)(enable_timing=True)
    start_seconds = time.perf_counter()
    last_seconds = start_seconds

    def on_gradient(_: Tensor) -> None:
        nonlocal last_seconds
        if is_cuda:
            # Recorded again at each gradient: the last record stands.
            last_gradient.record()
        last_seconds = time.perf_counter()

    hooks = []
    for p in learner.parameters:
        hooks.append(cast(Any, p).register_post_accumulate_grad_hook(on_gradient))
    if is_cuda:
        begin.record()
    try:
        losses = compute_gradient(learner, window)
    finally:
        for hook in hooks:
            hook.remove()
    if is_cuda:
        # The host waits for the device, on the first steps of a start alone.
        last_gradient.synchronize()
        return TimedGradient(losses, begin.elapsed_time(last_gradient) / 1000)
    return TimedGradient(losses, last_seconds - start_seconds)


def _after(position: Place, share: RankShare) -> Place:
    """Where the step after a share's begins."""
    samples_seen = position.seen + share.of_step
    if share.last_of_epoch:
        return Place(share.epoch + 1, 0, samples_seen)
    return Place(share.epoch, position.samples + share.of_step, samples_seen)
