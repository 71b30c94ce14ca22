"""What is tried before the first step: does the model take its data, and is the gradient exact?"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.batch.window import Batch
from train.config import Config
from train.data import Datasets, InTurn, read_in_turn
from train.exactness.additivity import ROUNDS, Exactness, NotExact, arithmetic, judge
from train.exactness.first_forward import try_first
from train.exactness.lone_sample import check_lone_samples
from train.exactness.recomputation import check_recomputation
from train.exactness.state import capture
from train.plan.run_plan import RunPlan
from train.step import Learner
from train.tasks import Task, TaskError, by_term, weight_columns

TRIAL_SAMPLES = 8  # few, since more prove no more


@dataclass(frozen=True)
class Preflight:
    """What was found out on the first samples of the first epoch, the same on every rank."""

    trial: Batch  # those samples, on the CPU
    reading: InTurn  # the samples to train on: watched from now on where labels are not in memory
    exactness: Exactness


def preflight(learner: Learner, sets: Datasets, plan: RunPlan, config: Config) -> Preflight:
    """Try the first forward, the first loss, and whether a batch adds up from its parts.

    Raises what try_first, check_lone_samples and check_recomputation do, TaskError where loss and
    weight do not fit together, NotExact where batch.exact=required cannot be kept.
    """
    state = capture(learner.module, learner.task)
    try:
        return _try(learner, sets, plan, config)
    finally:
        state.restore()  # the attributes, too, which a model or task counts or caches in


def _try(learner: Learner, sets: Datasets, plan: RunPlan, config: Config) -> Preflight:
    trial = sets.trial(config.seed, TRIAL_SAMPLES)
    samples = try_first(learner, sets, trial, config.data.columns)
    check_lone_samples(learner, trial, plan, config)
    check_recomputation(learner, trial)
    exactness = judge(learner, trial, config.precision, sets.padding)
    if exactness.mistakes and config.batch.exact != "ignore":
        raise TaskError(f"{exactness.mistakes[0]}. (batch.exact=ignore trains all the same)")
    # so does what is declared for want of a wider type
    rounds = arithmetic(learner, config.precision) in ROUNDS
    if config.batch.exact == "required" and (exactness.exact == "false" or rounds):
        reasons = "".join(f"\n  {reason}" for reason in exactness.reasons)
        raise NotExact(
            f"batch.exact=required, but this run would not be exact:{reasons}\nType: "
            "batch.exact=warn"
        )
    columns = weight_columns(learner.task)
    if columns:
        check_weight_columns(learner.task, columns, trial)
    return Preflight(
        trial,
        read_in_turn(samples, trial, columns, len(exactness.terms), plan.batch, config),
        exactness,
    )


def check_weight_columns(task: Task, columns: Sequence[str], trial: Batch) -> None:
    """Raises TaskError where the task counts its weights from other columns than it says."""
    name, kept = type(task).__name__, {"sample_id", *columns}
    said = f"{name}.weight_columns = {tuple(columns)}"
    type_now = "Name all the columns that loss_weight reads, or leave weight_columns out"
    try:
        alone = by_term(
            task.loss_weight({key: column for key, column in trial.items() if key in kept})
        )
    except KeyError as error:
        raise TaskError(f"{said}, but loss_weight reads {error.args[0]!r}. {type_now}") from error
    whole = by_term(task.loss_weight(trial))
    if dict(alone) != dict(whole):
        raise TaskError(
            f"{said}, but from these alone loss_weight gives {alone}, from all columns {whole}. "
            f"{type_now}"
        )
