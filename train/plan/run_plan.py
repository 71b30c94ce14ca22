"""The plan of a run: all that follows from config, data and ranks before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from train.batch import BatchPlan
from train.optim.lr_schedule import Rate, RateInStages
from train.plan.scaling_table import Table
from train.plan.stages import Staircase
from train.plan.steps import counting


@dataclass(frozen=True)
class Shrunk:
    """What micro.json holds: the micro-batches of a run that ran out of memory."""

    planned: int
    """Samples of a micro-batch, as the config has it."""
    world_size: int
    micro: int
    """Samples of the smaller micro-batch that fitted."""
    step: int
    """The step that ran out of memory."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    name: str
    loop: str
    """standard or accumulate"""
    precision: str
    batch: BatchPlan
    rate: Rate
    eval_samples: Mapping[str, int]
    """Of each evaluation set; "" is the main one."""
    tokens_per_sample: int
    """data.block_size; 0: samples are no blocks."""
    identity: Mapping[str, Any]
    """All that decides the curve."""
    curve_hash: str
    recipe_hash: str
    scaling: tuple[Table, ...] = ()
    """How the optimizer's numbers follow from the effective batch."""
    scaling_hints: tuple[str, ...] = ()
    """What speaks against that."""
    ema_decays: tuple[tuple[int, float], ...] = ()
    """(samples seen, decay from there on)"""
    data: Mapping[str, str] = field(default_factory=dict)
    """{split: digest of its data}"""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{column: names of its classes, in the order of their numbers}"""
    notes: tuple[str, ...] = ()
    """On the data, for the screen."""
    micro_tokens: int | None = None
    """batch.micro_tokens: `batch` then has the micro-batches of the longest texts."""
    shrunk: Shrunk | None = None
    """An earlier start ran out of memory: `batch` has smaller micro-batches than the config."""
    micro_search: Mapping[str, Any] | None = None
    """batch.micro=auto: the size that was chosen, and how."""
    predicted_peak: int | None = None
    """Bytes on the device, where the step was traced (--plan --memory, batch.micro=auto)."""
    micro_steps: tuple[int, int] | None = None
    """With micro_tokens: fewest and most micro-batches of a rank in a full step."""

    @property
    def total_steps(self) -> int:
        return self.rate.total_steps

    @property
    def total_samples(self) -> int:
        """Over all ranks; of a stream: at most."""
        # data.overfit counts the windows that are repeated. By whole epochs, with their tails, a
        # run had steps too many.
        batch = counting(self.batch, self.identity.get("data.overfit"))
        return batch.samples_after(self.total_steps)

    @property
    def peaks(self) -> list[float]:
        """Peak learning rates of the stages that begin before the end of the run."""
        if not (isinstance(self.rate, RateInStages) and isinstance(self.batch, Staircase)):
            return [self.rate.peak]
        # A stage that begins after the end of the run is never trained at its rate.
        stages = zip(self.batch.first_steps(), self.rate.stages, strict=True)
        return [peak for first_step, (_, _, peak) in stages if first_step <= self.total_steps]

    @property
    def prediction(self) -> tuple[int, int, int] | None:
        """Bytes at the peak of a full step, its samples over all ranks, a rank's micro-batches.

        None with unequal shares, too: it is that of the largest one, and each rank would compare
        its own share with it.
        """
        if self.predicted_peak is None or self.batch.weights:
            return None
        return self.predicted_peak, self.batch.effective, self.batch.accumulation_steps

    @property
    def samples_evaluated_at_once(self) -> int:
        if self.micro_search is not None:
            return int(self.micro_search["evaluation"])
        if not self.batch.weights:
            return self.batch.micro
        # The micro-batch of the smallest share, which fits in the memory of every rank.
        smallest = min(self.batch.shares(self.batch.effective))
        return max(1, -(-smallest // self.batch.accumulation_steps))

    def as_dict(self) -> dict[str, Any]:
        """plan.json: the fields, and what follows from them."""
        return asdict(self) | {"derived": self.derived()}

    def derived(self) -> dict[str, Any]:
        """Flat numbers for tables and filters."""
        batch = self.batch
        return {
            "loop": self.loop,
            "lr_peak": max(self.peaks),
            "scaling": [table.flat() for table in self.scaling] or None,
            # None where it changes during the run: the number of the first stage would stand for
            # all.
            "effective_batch": None if batch.stages else batch.effective,
            "batch_schedule": self.identity.get("batch.schedule"),
            # With micro_tokens a micro-batch has no fixed number of samples.
            "micro_batch": None if self.micro_steps else batch.micro,
            "accumulation_steps": self._accumulation_steps(),
            "world_size": batch.world_size,
            "tail_samples": batch.tail_samples,
            "steps_per_epoch": batch.steps_per_epoch,
            "total_steps": self.total_steps,
            "total_samples": self.total_samples,
            "curve_hash": self.curve_hash,
            "recipe_hash": self.recipe_hash,
        }

    def _accumulation_steps(self) -> int | None:
        """None where it varies from step to step."""
        if self.batch.stages:
            return None
        if self.micro_steps is None:
            return self.batch.accumulation_steps
        least, most = self.micro_steps
        return most if least == most else None
