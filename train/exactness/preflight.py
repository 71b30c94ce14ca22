"""What is checked before the first step: does the model take its data, is the gradient exact?"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.batch.window import Batch
from train.config import Config
from train.data import Datasets, InTurn, read_in_turn
from train.exactness.additivity import Exactness, NotExact, check_additivity
from train.exactness.capture import capture
from train.exactness.error_bounds import ROUNDS, arithmetic
from train.exactness.first_forward import check_first_forward
from train.exactness.lone_sample import check_lone_samples
from train.exactness.recomputation import check_recomputation
from train.plan.run_plan import RunPlan
from train.step import Learner
from train.tasks import Task, TaskError, by_term, weight_columns

TRIAL_SAMPLES = 8
"""Few: more prove no more, and cost memory and time."""


@dataclass(frozen=True)
class Preflight:
    """What was found out on the first samples of the first epoch, the same on every rank."""

    trial: Batch  # those samples, on the CPU
    reading: InTurn  # the samples to train on, whose labels are checked where not in memory
    exactness: Exactness


def preflight(learner: Learner, sets: Datasets, plan: RunPlan, config: Config) -> Preflight:
    """Check the first forward, the first loss, and whether a batch adds up from its parts.

    Raises what check_first_forward, check_lone_samples and check_recomputation do, TaskError where
    loss and weight do not fit together, NotExact where batch.exact=required cannot be kept.
    """
    # Captured once around all checks: each of them calls model and task, which may count or cache.
    state = capture(learner.module, learner.task)
    try:
        return _check(learner, sets, plan, config)
    finally:
        state.restore()  # attributes, too, in which a model or task counts or caches


def _check(learner: Learner, sets: Datasets, plan: RunPlan, config: Config) -> Preflight:
    trial = sets.trial(config.seed, TRIAL_SAMPLES)
    # The cheapest first: what is raised here explains what would fail below.
    samples = check_first_forward(learner, sets, trial, config.data.columns)
    check_lone_samples(learner, trial, plan, config)
    check_recomputation(learner, trial)
    exactness = check_additivity(learner, trial, config.precision, sets.padding)
    _check_against_config(learner, exactness, config)
    columns = weight_columns(learner.task)
    if columns:
        check_weight_columns(learner.task, columns, trial)
    reading = read_in_turn(samples, trial, columns, len(exactness.terms), plan.batch, config)
    return Preflight(trial, reading, exactness)


def _check_against_config(learner: Learner, exactness: Exactness, config: Config) -> None:
    """Raises TaskError or NotExact where batch.exact does not allow such a run."""
    if exactness.mistakes and config.batch.exact != "ignore":
        raise TaskError(f"{exactness.mistakes[0]}. (batch.exact=ignore trains all the same)")
    # A model that runs in half precision only is `declared`, and rounds all the same.
    rounds = arithmetic(learner, config.precision) in ROUNDS
    if config.batch.exact == "required" and (exactness.exact == "false" or rounds):
        reasons = "".join(f"\n  {reason}" for reason in exactness.reasons)
        raise NotExact(
            f"batch.exact=required, but this run would not be exact:{reasons}\nSet: "
            "batch.exact=warn"
        )


def check_weight_columns(task: Task, columns: Sequence[str], trial: Batch) -> None:
    """Raises TaskError where the task counts its weights from other columns than it says."""
    declared = f"{type(task).__name__}.weight_columns = {tuple(columns)}"
    advice = "Name all the columns that loss_weight reads, or leave weight_columns out"
    # The run will give loss_weight these columns alone, before the samples are read: so it is tried
    # with them alone.
    only_these: Batch = {}
    for name, column in trial.items():
        if name == "sample_id" or name in columns:
            only_these[name] = column
    try:
        from_these = by_term(task.loss_weight(only_these))
    except KeyError as error:
        raise TaskError(f"{declared}, but loss_weight reads {error.args[0]!r}. {advice}") from error
    from_all = by_term(task.loss_weight(trial))
    if dict(from_these) != dict(from_all):
        raise TaskError(
            f"{declared}, but from these alone loss_weight gives {from_these}, from all columns "
            f"{from_all}. {advice}"
        )
