"""A separate run in W&B, whatever else in this process has called wandb.init."""

import os
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from train import metric_names
from train.report.login import TrackerError
from train.report.wandb_settings import FIXED

NAMES = [name for name in vars(metric_names).values() if isinstance(name, str)]
ONLY_CURVES = [name for name in NAMES if name.startswith(metric_names.ONLY_CURVES)]


def open_run(settings: Mapping[str, Any], run_config: Mapping[str, Any]) -> Any:
    """wandb.init, and what our rows mean there.

    Raises TrackerError where the user's code has already opened the run of this id.
    """
    # wandb would send its own stack traces to its makers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Imported here: it takes a second, which the other ranks and untracked runs need not pay.
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    run_id = _id_of_run(settings)
    if wandb.run is not None and wandb.run.id == run_id:
        raise TrackerError(
            "W&B: your own code has called wandb.init before the training, and has opened the run "
            f"{run_id} that the environment names for it. Leave that call out: wandb.log then "
            "reaches the run of Isobatch. Or set: wandb.mode=disabled"
        )
    all_settings = wandb.Settings(**FIXED, **{**settings, "run_id": run_id})
    run = wandb.init(config=dict(run_config), settings=all_settings)
    # Where other code has a run open, wandb.init returns that one. Not "create_new" at once: the
    # user's own wandb.log would then reach no run.
    if run.id != run_id:
        all_settings.reinit = "create_new"
        run = wandb.init(config=dict(run_config), settings=all_settings)
    _define_metrics(run)
    return run


def _id_of_run(settings: Mapping[str, Any]) -> str:
    """The agent's in a trial of a sweep, else that of the run to resume, else the environment's.

    Chosen here, so that a run of other code is recognised by its id.
    """
    from_environment = os.environ.get("WANDB_RUN_ID")
    if from_environment and os.environ.get("WANDB_SWEEP_ID"):
        return from_environment
    return settings.get("run_id") or from_environment or token_hex(6)


def _define_metrics(run: Any) -> None:
    run.define_metric(metric_names.SAMPLES_SEEN)
    run.define_metric(metric_names.GLOBAL_STEP)
    # Rows carry their own x-axis instead of a `step=`: after a resume W&B would drop rows whose
    # step is not larger than the last one that it has.
    run.define_metric("*", step_metric=metric_names.SAMPLES_SEEN)
    # W&B makes a column of each key in the table of runs; those that are true of the run come from
    # columns.py.
    for name in ONLY_CURVES:
        run.define_metric(name, step_metric=metric_names.SAMPLES_SEEN, summary="none")
