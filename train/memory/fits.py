"""What fits in a GPU of some size: the micro-batches worth trying, their peaks, and a command."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from train.batch import BatchPlan
from train.config import Loaded
from train.installation import LAUNCH
from train.memory.memory_trace import (
    AS_CONFIGURED,
    CHECKPOINTED,
    CHUNKED,
    CHUNKED_AND_CHECKPOINTED,
    MemoryTrace,
)
from train.memory.search import candidates, doublings
from train.plan.stages import largest_effective

SHARE = 0.92
"""Of a GPU's memory; the rest is lost to fragmentation between the allocator's blocks."""

RESERVE = 2**29
"""Bytes that CUDA takes for itself: its context, workspaces of its libraries."""

STEPS_PER_WORKER = 2
"""Steps that each worker reads ahead (train/data/loader.py)."""

CHEAPEST_FIRST = (AS_CONFIGURED, CHUNKED, CHECKPOINTED, CHUNKED_AND_CHECKPOINTED)


def usable_bytes(memory: int) -> int:
    """Bytes of a GPU with `memory` bytes that a predicted peak may fill."""
    return int(SHARE * memory) - RESERVE


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One way to execute the steps of a run, on each of its ranks."""

    world_size: int
    micro: int
    accumulation_steps: int  # of the largest stage of a schedule
    variant: str = AS_CONFIGURED
    peak: int  # bytes
    anatomy: Mapping[str, int]  # {kind: bytes} at the peak
    fits: bool
    source: str = "predicted"


@dataclass(frozen=True, kw_only=True)
class Table:
    """What fits with one world size."""

    world_size: int
    share: int  # samples of a step, of the rank that has most
    rows: Sequence[Fit]
    others: Mapping[str, Fit] = field(default_factory=dict)
    """By variant: its largest micro-batch that fits, or its smallest where none does."""
    all_reduce_bytes_per_sample: float
    # estimated: bytes at the peak of the largest row that fits, were the model sharded
    divided: int | None
    host_bytes: int  # of samples in the host's memory, of one rank
    shared_bytes: int  # of it, in shared memory (/dev/shm)


def tabulate(
    trace: MemoryTrace, plan: BatchPlan, world_sizes: Sequence[int], usable: int | None
) -> list[Table]:
    """One table for each world size. `usable`: bytes; None: everything fits."""
    return [_Fits(trace, plan, world_size, usable).table() for world_size in world_sizes]


def sizes_to_trace(plan: BatchPlan, world_sizes: Sequence[int]) -> list[int]:
    """The micro-batches in the rows of all tables."""
    sizes: set[int] = set()
    for world_size in world_sizes:
        sizes.update(doublings(candidates(_share(plan, plan.effective, world_size))))
    return sorted(sizes)


def _share(plan: BatchPlan, samples: int, world_size: int) -> int:
    """The largest share that a rank has of a step."""
    if plan.weights:
        return max(plan.shares(samples))
    return -(-samples // world_size)


class _Fits:
    """Of one world size."""

    def __init__(
        self, trace: MemoryTrace, plan: BatchPlan, world_size: int, usable: int | None
    ) -> None:
        self.trace = trace
        self.plan = plan
        self.world_size = world_size
        self.usable = usable
        self.share = _share(plan, plan.effective, world_size)
        # A later stage of a schedule has more micro-steps.
        self.largest_share = _share(plan, largest_effective(plan), world_size)

    def table(self) -> Table:
        by_variant = {name: self._of_variant(name) for name in self.trace.peaks}
        configured = by_variant.pop(AS_CONFIGURED, [])
        # Doublings alone: a share of thousands of samples has dozens of sizes, more than a table
        # can show.
        shown = set(doublings(candidates(self.share)))
        best = _largest(configured)
        others = {}
        for name, fits in by_variant.items():
            if fits:
                others[name] = _largest(fits) or fits[0]
        divided = None
        if configured and self.world_size > 1:
            divided = self._sharded_peak(best or configured[0])
        step_bytes = self.largest_share * self.trace.sample_bytes
        shared_bytes = self.trace.workers * STEPS_PER_WORKER * step_bytes
        return Table(
            world_size=self.world_size,
            share=self.share,
            rows=[fit for fit in configured if fit.micro in shown or fit is best],
            others=others,
            all_reduce_bytes_per_sample=self._all_reduce_bytes_per_sample(),
            divided=divided,
            # The step that is trained and the next one, whose weights are counted ahead.
            host_bytes=self.trace.samples_held + 2 * step_bytes + shared_bytes,
            shared_bytes=shared_bytes,
        )

    def _of_variant(self, name: str) -> list[Fit]:
        """For each micro-batch whose peak is known, ascending."""
        fits = []
        for micro in candidates(self.share):
            steps = -(-self.largest_share // micro)
            try:
                anatomy = self.trace.anatomy(micro, steps, self.world_size, name)
            except KeyError:
                continue
            peak = sum(anatomy.values())
            fits.append(
                Fit(
                    world_size=self.world_size,
                    micro=micro,
                    accumulation_steps=steps,
                    variant=name,
                    peak=peak,
                    anatomy=anatomy,
                    fits=self.usable is None or peak <= self.usable,
                )
            )
        return fits

    def _all_reduce_bytes_per_sample(self) -> float:
        """A ring all-reduce sends each byte 2 (N - 1) / N times from each of N ranks."""
        per_byte = 2 * (self.world_size - 1) / self.world_size
        return per_byte * self.trace.reduced_bytes / self.plan.effective

    def _sharded_peak(self, fit: Fit) -> int:
        """With weights, gradients, optimizer state and average sharded over the ranks.

        Between micro-steps unsharded gradients are kept (batch.sync=step).
        """
        trace = self.trace
        sharded = trace.weights + (trace.optimizer or 0) + trace.ema
        if fit.accumulation_steps == 1:
            sharded += trace.gradients
        return fit.peak - round(sharded * (1 - 1 / fit.world_size))


def _largest(fits: Sequence[Fit]) -> Fit | None:
    return next((fit for fit in reversed(fits) if fit.fits), None)


def recommended(tables: Sequence[Table]) -> Fit | None:
    """The largest micro-batch that fits on the fewest ranks, with the cheapest change if any."""
    # By change first: as configured on more ranks comes before a changed memory on fewer.
    for name in CHEAPEST_FIRST:
        for table in tables:
            fit = _largest(table.rows) if name == AS_CONFIGURED else table.others.get(name)
            if fit is not None and fit.fits:
                return fit
    return None


def launch_command(fit: Fit, loaded: Loaded, loop: str, plan: BatchPlan) -> str:
    """The command that runs the config as `fit` says."""
    settings = dict(_settings(fit, loaded, plan))
    words = [str(loaded.path)]
    # An override of the user's that is settled below would stand there twice.
    words += [word for word in loaded.overrides if word.partition("=")[0] not in settings]
    words += [f"{key}={value}" for key, value in settings.items()]
    # train.standard takes one micro-batch for each step: the loop follows from what fits.
    if fit.accumulation_steps > 1:
        loop = "accumulate"
    return f"NPROC={fit.world_size} {LAUNCH} {loop} {shlex.join(words)}"


def _settings(fit: Fit, loaded: Loaded, plan: BatchPlan) -> Iterator[tuple[str, str]]:
    """(key, value) of each override."""
    batch = loaded.config.batch
    max_length = loaded.config.data.max_length
    if batch.micro_tokens and max_length:
        yield "batch.micro_tokens", str(fit.micro * max_length)
    else:
        yield "batch.micro", str(fit.micro)
    sizes = (batch.effective, batch.effective_tokens, batch.schedule, batch.schedule_tokens)
    if all(size is None for size in sizes):
        # Else the effective batch would follow from the micro-batch.
        yield "batch.effective", str(plan.effective)
    if batch.accumulation_steps is not None:
        yield "batch.accumulation_steps", "null"
    if fit.variant != AS_CONFIGURED:
        for change in fit.variant.split():
            key, _, value = change.partition("=")
            yield key, value
