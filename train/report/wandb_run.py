"""A run of our own in W&B, whatever else in this process has called wandb.init."""

import os
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from train import metric_names
from train.report.login import TrackerError
from train.report.wandb_settings import CLOSED

NAMES = [name for name in vars(metric_names).values() if isinstance(name, str)]
DRAWN = [name for name in NAMES if name.startswith(metric_names.DRAWN)]


def open_run(settings: Mapping[str, Any], run_config: Mapping[str, Any]) -> Any:
    """wandb.init, and what our rows mean there.

    Raises TrackerError where the user's code has opened the run already that this one would have to
    be.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own stack traces, to its makers
    import wandb  # here: it takes a second, which the other ranks and untracked runs need not pay

    wandb.setup(wandb.Settings(silent=True))
    # Chosen here, so that a run that is not ours is known by its id.
    run_id = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    run_id = run_id or settings.get("run_id") or os.environ.get("WANDB_RUN_ID") or token_hex(6)
    if wandb.run is not None and wandb.run.id == run_id:
        raise TrackerError(
            "W&B: your own code has called wandb.init before the training, and has opened the run "
            f"{run_id} that the environment names for it. Leave that call out: wandb.log then "
            "reaches the run of Isobatch. Or write wandb.mode=disabled"
        )
    closed = wandb.Settings(**CLOSED, **{**settings, "run_id": run_id})
    run = wandb.init(config=dict(run_config), settings=closed)
    if run.id != run_id:  # that of other code: wandb.init returns the run which is open
        closed.reinit = "create_new"
        run = wandb.init(config=dict(run_config), settings=closed)
    _define_metrics(run)
    return run


def _define_metrics(run: Any) -> None:
    run.define_metric(metric_names.SAMPLES_SEEN)
    run.define_metric(metric_names.GLOBAL_STEP)
    # no `step=`: after a resume W&B would drop rows
    run.define_metric("*", step_metric=metric_names.SAMPLES_SEEN)
    # W&B makes a column of the table of runs of each key; those that are true of the run come from
    # columns.py.
    for name in DRAWN:
        run.define_metric(name, step_metric=metric_names.SAMPLES_SEEN, summary="none")
