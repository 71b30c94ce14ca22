"""A run in W&B to a run of a comparison."""

import os
from collections.abc import Mapping
from typing import Any

from train import metric_names
from train.comparison.columns import Rows, rows_of
from train.comparison.rows import clean_row, split_config
from train.comparison.run import Run

ENDS = ("finished", "preempted", "crashed", "failed", "killed")
"""States of a run in W&B that are an end."""
REASON = metric_names.ENDED + "reason"


def read_wandb(path: str) -> "Run | str":
    """The run at entity/project/run, or why it cannot be had. Asks no question: who is not logged
    in is told so.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own stack traces, to its makers
    import wandb  # here: it takes a second, which a comparison of folders need not pay

    try:
        wandb.setup(wandb.Settings(silent=True))
        run = wandb.Api().run(path)
        config, name = dict(run.config), str(run.name)
        ended = str(dict(run.summary).get(REASON, run.state)) if run.state in ENDS else None
        rows = rows_of(filter(None, map(clean_row, run.scan_history())))
    # whatever wandb raises, a network included, is a reason and no crash
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"there is no folder of that name, and W&B says: {type(error).__name__}: {lines[0]}"
    return from_wandb(path, name, ended, config, rows)


def from_wandb(
    path: str, name: str, ended: str | None, config: Mapping[str, Any], rows: Rows
) -> "Run | str":
    derived, environment = config.get("derived"), config.get("environment")
    if not isinstance(derived, Mapping) or not {"curve_hash", "recipe_hash"} <= set(derived):
        return (
            "its config in W&B holds no `derived` block with hashes: no run of Isobatch, or an "
            "old one"
        )
    if not len(rows):
        return "it has no row in W&B"
    own = {
        key: value
        for key, value in config.items()
        if key not in ("derived", "environment", "_wandb")
    }
    mathematics, execution = split_config(own)
    return Run(
        where=path,
        name=name,
        identity=mathematics | _batch(derived),
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


def _batch(derived: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan's identity says of the batch."""
    if derived.get("batch_schedule"):
        return {"batch.schedule": derived["batch_schedule"]}
    return {"batch.effective": derived.get("effective_batch")}
