"""All of a run that follows from config and data before the first step: its plan, its trial, its facts."""

from dataclasses import replace
from typing import Any

from train.config import Config, Loaded, curve_hash, mathematics, recipe_hash, run_name, source_hash
from train.data import ByLength, Sets, Splits, TrainingSet, load_splits, open_sets
from train.exact import Exactness, NotExact, TaskError, judge
from train.fitting import try_first
from train.optimizer import scaled_numbers
from train.planning import plan_batch, plan_rate
from train.ranks import Ranks, asked_world_size
from train.report import Best, RunPlan, check_login, redacted
from train.schedule import Scaled
from train.setup import device_facts, make_task
from train.step import Learner
from train.tasks import Task


def load_data(config: Config) -> tuple[Task, Splits]:
    """The task, and the data sets with its columns: what takes long once, and is then found in a cache."""
    task = make_task(config)
    return task, load_splits(config, task.columns)


def prepare(
    loaded: Loaded, loop: str, task: Task, splits: Splits, weights: dict[str, str]
) -> tuple[Best, Sets, RunPlan, Scaled]:
    """All that follows from config and data without a device; `weights`: see initial.digests."""
    config = loaded.config
    best = Best.of(config.evaluate.best)
    check_login(config.wandb)
    sets = open_sets(config, task.columns, splits)
    return best, sets, *make_plan(loaded, loop, sets, weights)


def show_plan(loaded: Loaded, loop: str) -> None:
    """The plan on the screen, for the ranks that launch.sh or the launcher would start; touches no device."""
    task = make_task(loaded.config)
    print(*make_plan(loaded, loop, open_sets(loaded.config, task.columns), {})[0].lines(), sep="\n")


def make_plan(loaded: Loaded, loop: str, sets: Sets, weights: dict[str, str]) -> tuple[RunPlan, Scaled]:
    """The plan for the ranks that were asked for, and the optimizer's numbers in it."""
    config = loaded.config
    batch = plan_batch(config, loop, asked_world_size(), sets.train.size)
    numbers = scaled_numbers(config.optimizer, batch.effective)
    identity = mathematics(config, batch.effective) | weights
    code = source_hash(config)
    samples = sets.train
    plan = RunPlan(
        name=run_name(replace(loaded, overrides=redacted(loaded.overrides))),
        loop=loop,
        precision=config.precision,
        batch=batch,
        rate=plan_rate(config, batch, numbers.lr),
        rate_arithmetic=numbers.arithmetic,
        tokens_per_sample=config.data.block_size or 0,
        eval_samples={name: len(rows) for name, rows in sets.evaluation.items()},
        classes=sets.classes,
        notes=sets.notes + ((samples.note(),) if isinstance(samples, ByLength) else ()),
        micro_tokens=config.batch.micro_tokens,
        micro_steps=samples.micro_steps(batch) if isinstance(samples, ByLength) else None,
        identity=redacted(identity | {"code": code}),
        curve_hash=curve_hash(identity, code),
        recipe_hash=recipe_hash(identity, code),
    )
    return plan, numbers


def check_same_everywhere(plan: RunPlan, ranks: Ranks) -> None:
    """Ranks that read other data, or run other code, would train something that nobody asked for."""
    own = {"curve_hash": plan.curve_hash, "training samples": plan.batch.dataset_size, **plan.eval_samples}
    for rank, other in enumerate(ranks.gather(own)):
        if other != own:
            raise RuntimeError(f"rank {rank} has {other}, this one has {own}: do all nodes see the same files?")


def try_out(learner: Learner, sets: Sets, config: Config) -> tuple[Exactness, TrainingSet]:
    """Tried on the first samples of the first epoch, the same on every rank; few, since more prove no more. Gives the
    samples to train on too, as try_first does.

    Raises what try_first does, TaskError where loss and weight do not fit together, NotExact where
    batch.exact=required cannot be kept.
    """
    first = sets.trial(config.seed, 8)
    samples = try_first(learner, sets, first, config.data.columns)
    exactness = judge(learner, first, config.precision, sets.padding)
    if exactness.mistakes and config.batch.exact != "ignore":
        raise TaskError(f"{exactness.mistakes[0]}. (batch.exact=ignore trains all the same)")
    if config.batch.exact == "required" and exactness.exact == "false":
        reasons = "".join(f"\n  {reason}" for reason in exactness.reasons)
        raise NotExact(f"batch.exact=required, but this run would not be exact:{reasons}\nType: batch.exact=warn")
    return replace(exactness, trial=first), samples


def facts(learner: Learner, exactness: Exactness) -> dict[str, Any]:
    """What plan.json and the screen tell of the learner."""
    parameters = list(learner.module.parameters())
    return {
        "exact": exactness.exact,
        "exact_reasons": "; ".join(exactness.reasons),
        "parameters": sum(p.numel() for p in parameters),
        "parameters_gib": sum(p.numel() * p.element_size() for p in parameters) / 2**30,
        **device_facts(learner.device),
    }
