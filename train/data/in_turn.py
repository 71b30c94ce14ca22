"""Whether the samples of a step are read at once, or each micro-batch when its turn comes: who
decides, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.batch import BatchPlan
from train.batch.window import Batch
from train.config import Config
from train.data.by_length import ByLength
from train.data.in_range import InRange
from train.data.loader import Loader
from train.data.shares import TrainingSet
from train.data.workers import shared_bytes
from train.errors import counted

AT_ONCE = 2**20
"""Bytes: a rank's samples of a step in memory that are fewer are fetched at once, which costs less
time.
"""
ALIVE = 4
"""Micro-batches in a rank's memory: the one that is worked on, the next one, and what they are made
of.
"""


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
    """The samples as they are to be read. `trial`: a few of them; `weight_columns`: those that the
    task counts weights from, as far as it says so; `terms`: of its loss.
    """
    of_sample = sum(column.nbytes for column in trial.values()) / len(next(iter(trial.values())))
    largest = max([plan.effective, *(effective for _, effective in plan.stages)])
    of_share = of_sample * max(plan.shares(largest))
    is_cut = (
        plan.accumulation_steps > 1
        or plan.stages
        or config.batch.micro == "auto"
        or config.batch.micro_tokens
    )
    is_costly = isinstance(_innermost(samples), Loader)
    if not is_cut or not (is_costly or of_share > AT_ONCE):
        return InTurn(samples)
    deferred = samples.deferred(weight_columns)
    if not deferred.is_weighed and terms > 1:
        note = (
            f"reading   {_mib(of_share)} at once, all of a rank's samples of a step: the loss has "
            "several terms, and what their weights are counted from is not known. Say it in the "
            "task: weight_columns = (...)"
        )
        return InTurn(samples, notes=(note,))
    host = "reading   a micro-batch at a time"
    if config.batch.micro != "auto":  # whose size is found later
        host += _takes(round(of_sample * plan.micro), config.data.workers if is_costly else 0)
    if deferred.is_weighed:
        return InTurn(deferred, notes=(host,))
    late = (
        "; what the losses are divided by is known with the last one: the gradient is divided "
        "once, at the update"
    )
    return InTurn(deferred, is_late=True, notes=(host + late,))


def _takes(of_micro: int, workers: int) -> str:
    """How much memory, where a micro-batch has so many bytes."""
    host = f": about {_mib(ALIVE * of_micro)} of host memory per rank"
    if not workers:
        return host
    shared = shared_bytes(workers, of_micro)
    return host + f", {_mib(shared)} of shared memory by its {counted(workers, 'worker')}"


def _innermost(samples: TrainingSet) -> TrainingSet:
    while isinstance(samples, ByLength | InRange):
        samples = samples.samples
    return samples


def _mib(count: float) -> str:
    return f"{count / 2**20:,.3g} MiB"
