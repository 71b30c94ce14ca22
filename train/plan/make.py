"""What follows from config and data before there is a model: task, data sets and plan of a run."""

from dataclasses import dataclass, replace
from pathlib import Path

from train.config import (
    Config,
    Loaded,
    curve_hash,
    mathematics,
    recipe_hash,
    run_name,
    source_hash,
)
from train.data import (
    Datasets,
    Splits,
    load_splits,
    normalized,
    open_datasets,
    read_in_turn,
)
from train.distributed.ranks import LaunchError, Ranks, asked_world_size
from train.models.init_from import digests
from train.optim.optimizer import numbers_of_stages
from train.plan.describe import describe
from train.plan.run_plan import RunPlan
from train.plan.scaling_table import ema_decays, scaling_hints, scaling_tables
from train.plan.smaller import can_shrink, remembered, with_shrunk
from train.plan.steps import plan_batch, plan_rate
from train.redaction import clean
from train.tasks import Task, by_term, make_task, weight_columns


@dataclass(frozen=True)
class Prepared:
    """What is the same on every rank before there is a model."""

    task: Task
    sets: Datasets
    plan: RunPlan


def prepare(loaded: Loaded, loop: str, ranks: Ranks) -> Prepared:
    """Task, data and plan of a run.

    Raises PlanError, DataError, WeightsError and the like on every rank, and LaunchError where
    ranks differ.
    """
    config = loaded.config
    # The first rank of a machine fills the cache of datasets, from which the others read.
    task, splits = ranks.first_of_node(lambda: load_data(config))
    # By one rank: the files are read whole, at about 1 GB per second.
    weights = ranks.from_main(lambda: digests(config))
    sets = ranks.together(lambda: open_datasets(config, task.columns, splits))
    # Means and deviations come from rank 0, so that all ranks scale by the same bits.
    sets = normalized(sets, config, ranks.from_main)
    plan = ranks.together(lambda: make_plan(loaded, loop, sets, weights))
    check_same_everywhere(plan, ranks)
    return as_shrunk(Prepared(task, sets, plan), config, ranks)


def as_shrunk(prepared: Prepared, config: Config, ranks: Ranks) -> Prepared:
    """With the micro-batches that an earlier start of this run has shrunk to, if one has."""
    plan = prepared.plan
    folder = Path(config.output_dir) / plan.name
    # Read by one rank, so that all have the same.
    shrunk = ranks.from_main(lambda: remembered(folder) if can_shrink(plan, config) else None)
    return replace(prepared, plan=with_shrunk(plan, shrunk))


def load_data(config: Config) -> tuple[Task, Splits]:
    """The task, and the data sets with its columns: slow once, and cached from then on."""
    task = make_task(config)
    return task, load_splits(config, task.columns)


def show_plan(loaded: Loaded, loop: str) -> None:
    """Prints the plan for the ranks that would be started; touches no device."""
    task = make_task(loaded.config)
    sets = normalized(open_datasets(loaded.config, task.columns), loaded.config)
    # Without the digests of weights, which only hashes need.
    plan = make_plan(loaded, loop, sets, {})
    print(*describe(plan), *_reading(task, sets, plan, loaded.config), sep="\n")


def _reading(task: Task, sets: Datasets, plan: RunPlan, config: Config) -> tuple[str, ...]:
    """What the samples of a step take in memory."""
    trial = sets.trial(config.seed, 1)
    try:
        terms = len(by_term(task.loss_weight(trial)))
    except Exception:
        # What is wrong with a task is reported by the checks before the first step.
        return ()
    return read_in_turn(sets.train, trial, weight_columns(task), terms, plan.batch, config).notes


def make_plan(loaded: Loaded, loop: str, sets: Datasets, weights: dict[str, str]) -> RunPlan:
    """The plan for the ranks that will be started; `weights`: see init_from.digests."""
    config = loaded.config
    samples = sets.train
    # The ranks that launch.sh would start: under --plan this process is none of them.
    batch = plan_batch(config, loop, asked_world_size(), samples.size)
    numbers = numbers_of_stages(config.optimizer, batch)
    # Contents count as well, not only names: weights to start from, data, code.
    identity = mathematics(config, batch.effective, batch.stages) | weights
    # The digest of the data that is trained on. Held-out sets are compared over the ranks, but no
    # curve depends on them.
    if config.data.split in sets.digests:
        identity["data"] = sets.digests[config.data.split]
    code = source_hash(config)
    # The hashes are over the values themselves; what is written and shown is without secrets.
    return RunPlan(
        name=run_name(loaded),
        loop=loop,
        precision=config.precision,
        batch=batch,
        rate=plan_rate(config, batch, *(each.lr for each in numbers)),
        scaling=scaling_tables(config, batch),
        scaling_hints=scaling_hints(config, batch),
        ema_decays=ema_decays(config, batch),
        tokens_per_sample=config.data.block_size or 0,
        eval_samples={name: len(rows) for name, rows in sets.evaluation.items()},
        data=sets.digests,
        classes=sets.classes,
        notes=sets.notes + samples.notes,
        micro_tokens=config.batch.micro_tokens,
        micro_steps=samples.micro_steps(batch),
        identity=clean(identity | {"code": code}),
        curve_hash=curve_hash(identity, code),
        recipe_hash=recipe_hash(identity, code),
    )


def check_same_everywhere(plan: RunPlan, ranks: Ranks) -> None:
    """Ranks that read other data, or run other code, would train a mixture of the two.

    Raises LaunchError on every rank.
    """
    # The parts before the hash of all: the first one that differs is what the sentence names.
    facts: dict[str, object] = {"training samples": plan.batch.dataset_size}
    for name, size in plan.eval_samples.items():
        facts[f"samples of {name or 'the evaluation set'}"] = size
    for split, digest in plan.data.items():
        facts[f"data of {split}"] = digest
    facts["curve_hash"] = plan.curve_hash
    of_ranks = ranks.gather(facts)
    for rank, other in enumerate(of_ranks):
        for name, value in of_ranks[0].items():
            if other.get(name) != value:
                raise LaunchError(
                    f"the ranks do not agree on {name}: {value} on rank 0, {other.get(name)} on "
                    f"rank {rank}. Do all machines see the same files, and run the same code? Does "
                    "the code that makes the data draw from a generator without a seed, such as "
                    "numpy.random.default_rng()? Set: its seed"
                )
