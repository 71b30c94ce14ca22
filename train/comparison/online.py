"""A run in W&B to a run of a comparison."""

import os
from collections.abc import Mapping
from typing import Any

from train import metric_names
from train.comparison.columns import Rows, rows_of
from train.comparison.rows import clean_row, split_config
from train.comparison.run import Run

END_STATES = ("finished", "preempted", "crashed", "failed", "killed")
"""Of a run in W&B that has ended."""
REASON = metric_names.ENDED + "reason"
NOT_CONFIG = ("derived", "environment", "_wandb")
"""Blocks of a run's config in W&B that nobody configured."""


def wandb_api() -> Any:
    """wandb.Api, with the key that wandb itself finds; without one it raises, and never prompts."""
    # No setting of wandb (0.31) turns off its reports of stack traces to its makers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # here: it takes a second, which a comparison of folders need not pay

    # Silent, so that nothing of it is printed between the lines of a comparison.
    wandb.setup(wandb.Settings(silent=True))
    return wandb.Api()


def first_line(error: Exception) -> str:
    """`ValueError: Could not find project`: an error of wandb, which may be a page long."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def read_wandb(path: str) -> "Run | str":
    """The run at entity/project/run, or why it cannot be read."""
    try:
        run = wandb_api().run(path)
        config = dict(run.config)
        name = str(run.name)
        ended = None
        # A run that has not ended has no reason, though an earlier start may have left one.
        if run.state in END_STATES:
            ended = str(dict(run.summary).get(REASON, run.state))
        # scan_history, not history: that gives a sample of 500 rows (wandb's default).
        rows = rows_of(filter(None, map(clean_row, run.scan_history())))
    except Exception as error:  # whatever wandb raises is a reason: no network, no such run, no key
        return f"there is no folder of that name, and W&B says: {first_line(error)}"
    return from_wandb(path, name, ended, config, rows)


def from_wandb(
    path: str, name: str, ended: str | None, config: Mapping[str, Any], rows: Rows
) -> "Run | str":
    derived = config.get("derived")
    if not isinstance(derived, Mapping) or not {"curve_hash", "recipe_hash"} <= set(derived):
        return (
            "its config in W&B holds no `derived` block with hashes: no run of Isobatch, or an "
            "old one"
        )
    # Without rows there is nothing to compare, and W&B keeps runs that crashed at their start.
    if not len(rows):
        return "it has no row in W&B"
    environment = config.get("environment")
    configured = {key: value for key, value in config.items() if key not in NOT_CONFIG}
    # As of a folder: the same rules split what decides the curve from what does not.
    mathematics, execution = split_config(configured)
    return Run(
        where=path,
        name=name,
        identity=mathematics | _batch_of(derived),
        execution=execution,
        derived=derived,
        environment=environment if isinstance(environment, Mapping) else {},
        ended=ended,
        rows=rows,
        remarks=(
            "from W&B, which does not know the hash over its sources alone; the recipe's hash "
            "covers them",
        ),
    )


def _batch_of(derived: Mapping[str, Any]) -> dict[str, Any]:
    """What the identity in plan.json holds of the batch."""
    if derived.get("batch_schedule"):
        return {"batch.schedule": derived["batch_schedule"]}
    return {"batch.effective": derived.get("effective_batch")}
