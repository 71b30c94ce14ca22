"""The plan of a run: what will be trained, as arithmetic, before the first step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from train.batch import BatchPlan, ranks
from train.optim.lr_schedule import Rate, RateInStages
from train.plan.arithmetic import arithmetic
from train.plan.scaling_table import Table
from train.plan.stages import Staircase, largest_effective
from train.plan.steps import counting


@dataclass(frozen=True)
class Shrunk:
    """What micro.json holds."""

    planned: int
    """Samples of a micro-batch, as the config has it."""
    world_size: int
    micro: int
    """Those that it was shrunk to."""
    step: int
    """Which ran out of memory."""


@dataclass(frozen=True)
class RunPlan:
    name: str
    loop: str  # standard or accumulate
    precision: str
    batch: BatchPlan
    rate: Rate
    eval_samples: Mapping[str, int]  # of each set; "" is the main one
    tokens_per_sample: int  # data.block_size; 0: samples are no blocks
    identity: Mapping[str, Any]  # all that decides the curve
    curve_hash: str
    recipe_hash: str
    scaling: tuple[Table, ...] = ()  # how the optimizer's numbers follow from the effective batch
    scaling_hints: tuple[str, ...] = ()  # what speaks against that
    ema_decays: tuple[tuple[int, float], ...] = ()  # (samples seen, decay from there on)
    data: Mapping[str, str] = field(default_factory=dict)  # what the data of each split is
    # names, in the order of their numbers
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # on the data, for the screen
    # batch.micro_tokens: the plan's micro-batches are then those of the longest texts
    micro_tokens: int | None = None
    # an earlier start ran out of memory: the plan's micro-batches are smaller
    shrunk: Shrunk | None = None
    micro_search: Mapping[str, Any] | None = None  # batch.micro=auto: what was found, and how
    # bytes on the device, where it was traced (--plan --memory, batch.micro=auto)
    predicted_peak: int | None = None
    # with it: fewest and most micro-batches of a rank in a full step
    micro_steps: tuple[int, int] | None = None

    @property
    def total_steps(self) -> int:
        return self.rate.total_steps

    @property
    def total_samples(self) -> int:
        """Over all ranks; of a stream: at most."""
        return counting(self.batch, self.identity.get("data.overfit")).samples_after(
            self.total_steps
        )

    def as_dict(self) -> dict[str, Any]:
        """plan.json: the fields, and what follows from them."""
        return asdict(self) | {"derived": self.derived()}

    def derived(self) -> dict[str, Any]:
        """Flat numbers for tables and filters."""
        batch = self.batch
        return {
            "loop": self.loop,
            "lr_peak": max(self._peaks()),
            "scaling": [table.flat() for table in self.scaling] or None,
            "effective_batch": None if batch.stages else batch.effective,
            "batch_schedule": self.identity.get("batch.schedule"),
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

    def lines(self) -> list[str]:
        rate = self.rate
        floor = rate.final_fraction * self._peaks()[-1]
        fall = "constant" if rate.name == "constant" else f"{rate.name} to {floor:.4g}"
        fall += (
            f" in the last {rate.decay_steps} steps ({rate.decay_shape})"
            if rate.name == "wsd"
            else ""
        )
        warm = f" after {rate.warmup_steps} steps of warm-up" if rate.warmup_steps else ""
        sets = [
            f"{size:,} in {name}" if name else f"{size:,} held out"
            for name, size in self.eval_samples.items()
        ]
        parameters = ", parameters in bf16" if self.identity.get("model.dtype") else ""
        return [
            f"run       {self.name}: {self.loop} loop, {self.precision}{parameters}",
            f"batch     {self._batch()}",
            *self._stages(),
            f"data      {'; '.join([self._epoch(), *sets])}",
            *self._found(),
            *self._tokens(),
            *self._small(),
            *self.notes,
            f"duration  {self.total_steps:,} steps = {self._samples()}",
            *(f"scaling   {line}" for table in self.scaling for line in table.lines()),
            *(f"hint      {hint}" for hint in self.scaling_hints),
            f"rate      peak {self._peak()}, {fall}{warm}",
            *self._warmup(),
        ]

    def _warmup(self) -> list[str]:
        rate, steps = self.rate, self.total_steps
        if rate.warmup_steps <= steps:
            return []
        return [
            f"warning   {rate.warmup_steps:,} steps of warm-up in a run of {steps:,}: the rate "
            "never reaches its peak, the last step is taken at "
            f"{rate.at(steps, self.batch.samples_after(steps - 1)):.4g} (schedule.warmup_*)"
        ]

    def _batch(self) -> str:
        batch = self.batch
        if self.micro_steps is None:
            return arithmetic(batch)
        least, most = self.micro_steps
        count = f"{least} to {most}" if least < most else f"{most}"
        return (
            f"{batch.effective} samples on {ranks(batch.world_size)}, by length: {count} "
            f"micro-batches each, of at most {self.micro_tokens:,} tokens with their padding"
        )

    def _stages(self) -> list[str]:
        """Those of a schedule that follow the first; a later one is divided as the first is."""
        if not isinstance(self.batch, Staircase):
            return []
        lines = []
        for (start, effective), first_step in zip(
            self.batch.stages[1:], self.batch.first_steps()[1:], strict=True
        ):
            how = (
                f"{effective} samples, by length"
                if self.micro_steps
                else arithmetic(self.batch.at(start))
            )
            reached = (
                f"step {first_step:,}"
                if first_step <= self.total_steps
                else "after the end of this run"
            )
            lines.append(f"          from {start:,} samples on ({reached}): {how}")
        return lines

    def _peaks(self) -> list[float]:
        """Of the stages that begin before the end of the run."""
        if not (isinstance(self.rate, RateInStages) and isinstance(self.batch, Staircase)):
            return [self.rate.peak]
        begins = zip(self.batch.first_steps(), self.rate.stages, strict=True)
        return [peak for first_step, (_, _, peak) in begins if first_step <= self.total_steps]

    def _peak(self) -> str:
        peaks = [self.rate.peak]
        if isinstance(self.rate, RateInStages):
            peaks = [peak for _, _, peak in self.rate.stages]
        if len(set(peaks)) == 1:
            return f"{peaks[0]:.4g}"
        return f"{', '.join(f'{peak:.4g}' for peak in peaks)} in the stages of the batch"

    def _found(self) -> list[str]:
        if self.micro_search is None:
            return []
        found = self.micro_search
        return [
            f"micro     auto: {found['chosen']} ({found['source']}); the largest that fits: "
            f"{found['largest_fitting']}"
        ]

    @property
    def prediction(self) -> tuple[int, int, int] | None:
        """Bytes at the peak of a full step, its samples over all ranks, and a rank's micro-batches.

        None with unequal shares, too: it is that of the largest one, and each rank would hold its
        own against it.
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
        # For which every rank has room.
        return max(
            1, -(-min(self.batch.shares(self.batch.effective)) // self.batch.accumulation_steps)
        )

    def _accumulation_steps(self) -> int | None:
        """None where it varies from step to step."""
        if self.batch.stages:
            return None
        if self.micro_steps is None:
            return self.batch.accumulation_steps
        least, most = self.micro_steps
        return most if least == most else None

    def _tokens(self) -> list[str]:
        size, batch = self.tokens_per_sample, self.batch
        if not size:
            return []
        total = self.total_samples * size
        if batch.stages:
            sizes = ", ".join(f"{effective * size:,}" for _, effective in batch.stages)
            return [
                f"tokens    {sizes} per step in the stages of the batch; at most {total:,} in all"
            ]
        # At most: a set's last block may be filled up, and the epochs of a stream may end in
        # smaller steps.
        return [
            f"tokens    {batch.effective * size:,} per step = {batch.effective} x {size}; at most "
            f"{total:,} in all"
        ]

    def _epoch(self) -> str:
        batch = self.batch
        if batch.dataset_size is None:
            return "a stream of unknown length"
        full, tail = divmod(batch.dataset_size, batch.effective)
        if batch.stages:
            return f"{batch.dataset_size:,} samples"
        text = f"{batch.dataset_size:,} samples = {full:,} x {batch.effective}"
        if not tail:
            return text
        return text + (f" ({tail} left out: data.drop_tail)" if batch.drop_tail else f" + {tail}")

    def _small(self) -> list[str]:
        batch = self.batch
        largest = largest_effective(batch)
        if batch.dataset_size is None or batch.dataset_size >= largest:
            return []
        return [
            f"warning   fewer samples than batch.effective={largest}: each step takes "
            f"{batch.dataset_size}; optimizer.lr_scaling follows the stated {largest}"
        ]

    def _samples(self) -> str:
        samples, epoch = self.total_samples, self.batch.samples_per_epoch
        if epoch is None:
            return f"at most {samples:,} samples (the last step of an epoch may be smaller)"
        return f"{samples:,} samples = {samples / epoch:.4g} epochs"
