"""Whether the samples of a step are read at once, or each micro-batch when its turn comes."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.batch import BatchPlan
from train.batch.window import Batch
from train.config import Config
from train.data.deferred import batch_size
from train.data.loader import Loader
from train.data.protocols import TrainingSet, step_sizes
from train.data.workers import shared_bytes
from train.errors import counted

SMALL_BYTES = 2**20
"""Of a rank's samples of a step in memory: less is fetched at once, which takes less time."""
HELD = 4
"""Micro-batches in a rank's memory: the present one, the next one, and what they are made of."""


@dataclass(frozen=True)
class InTurn:
    samples: TrainingSet
    is_late: bool = False  # the weight of a step is known when its last micro-batch is read
    notes: tuple[str, ...] = ()  # for the screen


def read_in_turn(
    samples: TrainingSet,
    trial: Batch,
    weight_columns: Sequence[str],
    terms: int,
    plan: BatchPlan,
    config: Config,
) -> InTurn:
    """The samples as they are to be read.

    `trial`: a few of them; `weight_columns`: those that the task counts weights from, as far as it
    states them; `terms`: how many its loss has.
    """
    sample_bytes = sum(column.nbytes for column in trial.values()) / batch_size(trial)
    share_bytes = sample_bytes * max(plan.shares(max(step_sizes(plan))))
    is_cut = (
        plan.accumulation_steps > 1
        or plan.stages
        or config.batch.micro == "auto"
        or config.batch.micro_tokens
    )
    is_costly = isinstance(samples.innermost, Loader)
    # All of a step at once takes eight calls per micro-step less. It is given up only where memory
    # or time is to be saved by it.
    if not is_cut or not (is_costly or share_bytes > SMALL_BYTES):
        return InTurn(samples)
    deferred = samples.deferred(weight_columns)
    # The gradient is multiplied by one factor at the update; several terms would need one each.
    if not deferred.is_weighed and terms > 1:
        note = (
            f"reading   {_mib(share_bytes)} at once, all of a rank's samples of a step: the loss "
            "has several terms, and what their weights are counted from is not known. Say it in "
            "the task: weight_columns = (...)"
        )
        return InTurn(samples, notes=(note,))
    note = "reading   a micro-batch at a time"
    if config.batch.micro != "auto":  # whose size is not found yet
        workers = config.data.workers if is_costly else 0
        note += _memory(round(sample_bytes * plan.micro), workers)
    if deferred.is_weighed:
        return InTurn(deferred, notes=(note,))
    note += (
        "; what the losses are divided by is known with the last one: the gradient is divided "
        "once, at the update"
    )
    return InTurn(deferred, is_late=True, notes=(note,))


def _memory(micro_bytes: int, workers: int) -> str:
    """What is needed for micro-batches of so many bytes."""
    host = f": about {_mib(HELD * micro_bytes)} of host memory per rank"
    if not workers:
        return host
    shared = shared_bytes(workers, micro_bytes)
    return f"{host}, {_mib(shared)} of shared memory by its {counted(workers, 'worker')}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.3g} MiB"
