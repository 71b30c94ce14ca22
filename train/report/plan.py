"""The plan of a run: what will be trained, as arithmetic, before the first step."""

from dataclasses import asdict, dataclass
from typing import Any

from train.batch import BatchPlan
from train.schedule import Rate


@dataclass(frozen=True)
class RunPlan:
    name: str
    loop: str  # standard or accumulate
    precision: str
    batch: BatchPlan
    rate: Rate
    rate_arithmetic: tuple[str, ...]  # how the optimizer's numbers follow from the effective batch
    eval_samples: int

    @property
    def total_steps(self) -> int:
        return self.rate.total_steps

    def as_dict(self) -> dict[str, Any]:
        """plan.json: the fields, and what follows from them."""
        batch = self.batch
        derived = {
            "total_steps": self.total_steps,
            "total_samples": batch.samples_after(self.total_steps),
            "steps_per_epoch": batch.steps_per_epoch,
            "tail_samples": batch.tail_samples,
        }
        return asdict(self) | {"derived": derived}

    def lines(self) -> list[str]:
        batch, rate = self.batch, self.rate
        seen = batch.samples_after(self.total_steps)
        epochs = seen / batch.samples_per_epoch
        shape = {"constant": "constant", "linear": "linear to", "cosine": "cosine to"}[rate.name]
        fall = shape if rate.name == "constant" else f"{shape} {rate.final_fraction * rate.peak:.4g}"
        warm = f" after {rate.warmup_steps} steps of warm-up" if rate.warmup_steps else ""
        held_out = f"; {self.eval_samples:,} held out" if self.eval_samples else ""
        return [
            f"run       {self.name}: {self.loop} loop, {self.precision}",
            f"batch     {batch.arithmetic()}",
            f"data      {batch.dataset_size:,} samples = {self._epoch()}{held_out}",
            f"duration  {self.total_steps:,} steps = {seen:,} samples = {epochs:.4g} epochs",
            *(f"scaling   {line}" for line in self.rate_arithmetic),
            f"rate      peak {rate.peak:.4g}, {fall}{warm}",
        ]

    def _epoch(self) -> str:
        batch = self.batch
        full, tail = batch.dataset_size // batch.effective, batch.tail_samples
        text = f"{full:,} steps of {batch.effective}"
        if not tail:
            return text
        return text + (f" ({tail} left out: data.drop_tail)" if batch.drop_tail else f" and one of {tail}")
