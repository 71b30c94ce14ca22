"""The resolved table of a scaling rule: each number at its reference, and what is trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.batch import BatchPlan
from train.config import Config
from train.optim.batch_scaling import Change, Row, ema_row
from train.optim.optimizer import change_of, numbers_of_stages
from train.optim.regimes import hints


@dataclass(frozen=True)
class Table:
    """Of one effective batch."""

    rule: str
    batch: int
    reference: int
    rows: tuple[Row, ...]

    def lines(self) -> list[str]:
        """`betas  (0.9, 0.999) -> (0.6561, 0.996)  ** kappa`, below a line that says
        what kappa is.
        """
        kappa = f"kappa = {self.batch}/{self.reference} = {self.batch / self.reference:.4g}"
        names = max(len(row.name) for row in self.rows)
        changes = [f"{short(row.reference)} -> {short(row.resolved)}" for row in self.rows]
        widest = max(map(len, changes))
        rows = zip(self.rows, changes, strict=True)
        return [
            f"{self.rule}, {kappa}: reference -> resolved",
            *(f"  {row.name:<{names}}  {change:<{widest}}  {row.how}" for row, change in rows),
        ]

    def flat(self) -> dict[str, Any]:
        """For tables of runs."""
        numbers = {
            row.name: {"reference": row.reference, "resolved": row.resolved} for row in self.rows
        }
        return {"rule": self.rule, "kappa": self.batch / self.reference, **numbers}


def scaling_tables(config: Config, batch: BatchPlan) -> tuple[Table, ...]:
    """One for each effective batch at which a rule changes something."""
    tables = {}
    for size, numbers in zip(
        _sizes(config, batch), numbers_of_stages(config.optimizer, batch), strict=True
    ):
        rows = numbers.rows
        if rows and config.ema.decay is not None:
            rows += (ema_row(config.ema.decay, numbers.ema_power),)
        if rows:
            assert config.optimizer.lr_reference_batch is not None
            tables[size] = Table(
                config.optimizer.lr_scaling, size, config.optimizer.lr_reference_batch, rows
            )
    return tuple(tables.values())


def scaling_hints(config: Config, batch: BatchPlan) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for change in changes(config, batch):
        found |= dict.fromkeys(hints(config.optimizer.lr_scaling, change))
    return tuple(found)


def ema_decays(config: Config, batch: BatchPlan) -> tuple[tuple[int, float], ...]:
    """(samples seen, decay of the average from there on); none where no average is kept."""
    decay = config.ema.decay
    if decay is None:
        return ()
    starts = [start for start, _ in batch.stages] or [0]
    numbers = numbers_of_stages(config.optimizer, batch)
    return tuple(
        (start, decay**each.ema_power) for start, each in zip(starts, numbers, strict=True)
    )


def changes(config: Config, batch: BatchPlan) -> list[Change | None]:
    """To the effective batch of each stage."""
    return [change_of(config.optimizer, size) for size in _sizes(config, batch)]


def _sizes(config: Config, batch: BatchPlan) -> Sequence[int]:
    """The effective batch that the numbers of each stage are for."""
    if not batch.stages or config.optimizer.lr_on_schedule == "keep":
        return [batch.effective] * max(1, len(batch.stages))
    return [effective for _, effective in batch.stages]


def short(value: Any) -> str:
    return (
        "(" + ", ".join(f"{v:.4g}" for v in value) + ")"
        if isinstance(value, tuple | list)
        else f"{value:.4g}"
    )
