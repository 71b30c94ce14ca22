"""What fits in a memory of some size: the micro-batches that make sense, what each takes, and a
line to type.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from train.batch import BatchPlan
from train.config import Loaded
from train.installation import LAUNCH
from train.memory.foresight import AS_CONFIGURED, CHECKPOINTED, CHUNKED, SMALLEST, Foresight
from train.memory.search import candidates, doublings
from train.plan.stages import largest_effective

SHARE = 0.92
"""Of a GPU's memory; the rest is lost between the blocks of its allocator."""

RESERVE = 2**29
"""Bytes that CUDA takes for itself: its context, workspaces of its libraries."""

IN_WORKER = 2
"""Steps that each worker reads ahead (train/data/loader.py)."""

CHEAPEST_FIRST = (AS_CONFIGURED, CHUNKED, CHECKPOINTED, SMALLEST)


def counted_on(memory: int) -> int:
    """Bytes of a GPU with `memory` bytes that a prediction may fill."""
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
    """Of one number of ranks."""

    world_size: int
    share: int  # samples of a step, of the rank that has most
    rows: Sequence[Fit]
    others: Mapping[str, Fit] = field(default_factory=dict)
    """By variant: its largest micro-batch that fits, or its smallest where none does."""
    all_reduce_bytes_per_sample: float
    # bytes at the peak of the row before the last that fits, were the model divided (estimated)
    divided: int | None
    host_bytes: int  # that samples take in the host's memory, of one rank
    shared_bytes: int  # of it, in shared memory (/dev/shm)


def tabulate(
    foresight: Foresight, plan: BatchPlan, world_sizes: Sequence[int], usable: int | None
) -> list[Table]:
    return [_table(foresight, plan, world_size, usable) for world_size in world_sizes]


def sizes_to_trace(plan: BatchPlan, world_sizes: Sequence[int]) -> list[int]:
    """Those of the rows, over all numbers of ranks."""
    sizes = {
        size
        for ranks in world_sizes
        for size in doublings(candidates(_share(plan, plan.effective, ranks)))
    }
    return sorted(sizes)


def _share(plan: BatchPlan, samples: int, world_size: int) -> int:
    return max(plan.shares(samples)) if plan.weights else -(-samples // world_size)


def _table(foresight: Foresight, plan: BatchPlan, world_size: int, usable: int | None) -> Table:
    share = _share(plan, plan.effective, world_size)
    # a later stage has more micro-steps
    largest = _share(plan, largest_effective(plan), world_size)
    fits = {
        name: _fits(foresight, share, largest, world_size, usable, name) for name in foresight.peaks
    }
    own = fits.get(AS_CONFIGURED, [])
    shown = set(doublings(candidates(share)))
    best = _largest(own)
    rows = [fit for fit in own if fit.micro in shown or fit is best]
    step = largest * foresight.sample_bytes
    shared = foresight.workers * IN_WORKER * step
    return Table(
        world_size=world_size,
        share=share,
        rows=rows,
        others={
            name: _largest(of) or of[0] for name, of in fits.items() if of and name != AS_CONFIGURED
        },
        all_reduce_bytes_per_sample=2
        * (world_size - 1)
        / world_size
        * foresight.reduced_bytes
        / plan.effective,
        divided=_divided(foresight, best or own[0]) if own and world_size > 1 else None,
        # The step that is trained and the next one, which is counted ahead.
        host_bytes=foresight.samples_held + 2 * step + shared,
        shared_bytes=shared,
    )


def _fits(
    foresight: Foresight, share: int, largest: int, world_size: int, usable: int | None, name: str
) -> list[Fit]:
    """Of each size that is known, ascending."""
    found = []
    for micro in candidates(share):
        steps = -(-largest // micro)
        try:
            anatomy = foresight.anatomy(micro, steps, world_size, name)
        except KeyError:
            continue
        peak = sum(anatomy.values())
        found.append(
            Fit(
                world_size=world_size,
                micro=micro,
                accumulation_steps=steps,
                variant=name,
                peak=peak,
                anatomy=anatomy,
                fits=usable is None or peak <= usable,
            )
        )
    return found


def _largest(fits: Sequence[Fit]) -> Fit | None:
    return next((fit for fit in reversed(fits) if fit.fits), None)


def _divided(foresight: Foresight, fit: Fit) -> int:
    """Weights, gradients, state and average divided among the ranks; between micro-steps whole
    gradients are kept.
    """
    state = foresight.weights + (foresight.optimizer or 0) + foresight.ema
    if fit.accumulation_steps == 1:
        state += foresight.gradients
    return fit.peak - round(state * (1 - 1 / fit.world_size))


def recommended(tables: Sequence[Table]) -> Fit | None:
    """The largest micro-batch that fits on the fewest ranks: as configured, else with the cheapest
    change.
    """
    for name in CHEAPEST_FIRST:
        for table in tables:
            found = _largest(table.rows) if name == AS_CONFIGURED else table.others.get(name)
            if found is not None and found.fits:
                return found
    return None


def line_for(fit: Fit, loaded: Loaded, loop: str, plan: BatchPlan) -> str:
    """What to paste."""
    settings = dict(_settings(fit, loaded, plan))
    kept = [word for word in loaded.overrides if word.partition("=")[0] not in settings]
    words = [str(loaded.path), *kept, *(f"{key}={value}" for key, value in settings.items())]
    loop = "accumulate" if fit.accumulation_steps > 1 else loop
    return f"NPROC={fit.world_size} {LAUNCH} {loop} {shlex.join(words)}"


def _settings(fit: Fit, loaded: Loaded, plan: BatchPlan) -> Iterator[tuple[str, str]]:
    stated, longest = loaded.config.batch, loaded.config.data.max_length
    if stated.micro_tokens and longest:
        yield "batch.micro_tokens", str(fit.micro * longest)
    else:
        yield "batch.micro", str(fit.micro)
    sizes = (stated.effective, stated.effective_tokens, stated.schedule, stated.schedule_tokens)
    if all(size is None for size in sizes):
        yield "batch.effective", str(plan.effective)  # else it would follow from micro
    if stated.accumulation_steps is not None:
        yield "batch.accumulation_steps", "null"
    for change in fit.variant.split() if fit.variant != AS_CONFIGURED else ():
        key, _, value = change.partition("=")
        yield key, value
