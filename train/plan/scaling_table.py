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
        """What kappa is; then for each number `eps  1e-08 -> 2e-08  / sqrt(kappa)`."""
        kappa = f"kappa = {self.batch}/{self.reference} = {self.batch / self.reference:.4g}"
        lines = [f"{self.rule}, {kappa}: reference -> resolved"]
        changes = [f"{short(row.reference)} -> {short(row.resolved)}" for row in self.rows]
        name_width = max(len(row.name) for row in self.rows)
        change_width = max(map(len, changes))
        for row, change in zip(self.rows, changes, strict=True):
            lines.append(f"  {row.name:<{name_width}}  {change:<{change_width}}  {row.how}")
        return lines

    def flat(self) -> dict[str, Any]:
        """For tables of runs."""
        numbers = {
            row.name: {"reference": row.reference, "resolved": row.resolved} for row in self.rows
        }
        return {"rule": self.rule, "kappa": self.batch / self.reference, **numbers}


def scaling_tables(config: Config, batch: BatchPlan) -> tuple[Table, ...]:
    """One for each effective batch at which a rule changes something."""
    optimizer = config.optimizer
    # By size: a size that several stages have is shown once.
    tables = {}
    sizes = _sizes(config, batch)
    for size, numbers in zip(sizes, numbers_of_stages(optimizer, batch), strict=True):
        rows = numbers.rows
        if not rows:
            continue
        if config.ema.decay is not None:
            rows += (ema_row(config.ema.decay, numbers.ema_power),)
        # The config's checks ask for it beside a rule.
        assert optimizer.lr_reference_batch is not None
        tables[size] = Table(
            rule=optimizer.lr_scaling,
            batch=size,
            reference=optimizer.lr_reference_batch,
            rows=rows,
        )
    return tuple(tables.values())


def scaling_hints(config: Config, batch: BatchPlan) -> tuple[str, ...]:
    """What speaks against the rule, each sentence once."""
    # Stages may give the same sentence.
    sentences: list[str] = []
    for change in changes(config, batch):
        sentences += hints(config.optimizer.lr_scaling, change)
    return tuple(dict.fromkeys(sentences))


def ema_decays(config: Config, batch: BatchPlan) -> tuple[tuple[int, float], ...]:
    """(samples seen, decay of the average from there on); none where no average is kept."""
    decay = config.ema.decay
    if decay is None:
        return ()
    starts = [start for start, _ in batch.stages] or [0]
    numbers = numbers_of_stages(config.optimizer, batch)
    # A step of kappa times as many samples forgets as much as kappa steps did: decay ** kappa.
    return tuple(
        (start, decay**each.ema_power) for start, each in zip(starts, numbers, strict=True)
    )


def changes(config: Config, batch: BatchPlan) -> list[Change | None]:
    """To the effective batch of each stage."""
    return [change_of(config.optimizer, size) for size in _sizes(config, batch)]


def _sizes(config: Config, batch: BatchPlan) -> Sequence[int]:
    """The effective batch that the numbers of each stage are for."""
    if not batch.stages:
        return [batch.effective]
    # The numbers of the first stage everywhere: there a larger batch means less noise.
    if config.optimizer.lr_on_schedule == "keep":
        return [batch.effective] * len(batch.stages)
    return [effective for _, effective in batch.stages]


def short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "(" + ", ".join(f"{number:.4g}" for number in value) + ")"
    return f"{value:.4g}"
