"""The exact metrics of a run folder's final weights, on any number of ranks.

python -m train.evaluate RUN [key=value ...] [--trust]        (or under accelerate launch)

The config of a run folder names code. What may be harmful is called with --trust only.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from train.chunked_loss import chunk_loss
from train.config import Foreign, load
from train.data import DataError, open_datasets
from train.disk import Unreadable, read_json
from train.distributed.accelerator import check_launcher, connect
from train.distributed.ranks import launched_rank
from train.errors import (
    BAD_CONFIG,
    FAILED,
    FINISHED,
    RunFailed,
    entry_point,
    exit_code,
    print_error,
)
from train.evaluation.evaluator import Evaluation
from train.installation import command
from train.models.cast_arguments import cast_arguments
from train.models.make import parameter_dtype
from train.models.weights import NotFinished, final_weights, trained_model
from train.tasks import make_task

USAGE = (
    f"usage: {command('evaluate')} RUN [key=value ...] [--trust]      RUN: a run folder, such "
    "as runs/digits"
)
CALLED = frozenset(
    {
        "model.target",
        "task.target",
        "data.source",
        "data.transform",
        "data.eval_transform",
        "data.tokenizer",
    }
)
"""Keys that name what is called."""


@entry_point
def main(argv: Sequence[str]) -> int:
    """Print each metric; returns the exit code."""
    if not set(argv) - {"--trust"} or {"-h", "--help"} & set(argv):
        print(USAGE)
        return FINISHED if argv else BAD_CONFIG
    try:
        run_folder, *overrides = [argument for argument in argv if argument != "--trust"]
        metrics = evaluate(Path(run_folder), overrides, trust="--trust" in argv)
    except RunFailed as error:
        print_error(str(error))
        return exit_code(str(error), FAILED, 0)
    # Rank 0 alone: each rank has the same numbers, and one JSON is to be read by others.
    if launched_rank() == 0:
        print(json.dumps({f"eval/{name}": value for name, value in metrics.items()}, indent=2))
    return exit_code("finished", FINISHED, 0)


def _micro_batch(run_folder: Path) -> int:
    """The micro-batch size of the training, which fitted in memory."""
    plan = run_folder / "plan.json"
    try:
        micro: int = read_json(plan, {"batch": {"micro": int}})["batch"]["micro"]
    except FileNotFoundError:
        what = f"{run_folder} is not the folder of a run as training leaves it"
        raise NotFinished(f"{plan} is not there: {what}") from None
    except Unreadable as error:
        raise NotFinished(f"{error}. Name another run folder, or train again") from error
    if micro < 1:
        raise NotFinished(
            f"{plan} is damaged: batch.micro is {micro}. Name another run folder, or train again"
        )
    return micro


def evaluate(run_folder: Path, overrides: Sequence[str], trust: bool = False) -> dict[str, float]:
    """{metric: value} on the run's evaluation sets; `overrides` replace keys of its config."""
    # First what needs no data and no model: a folder without weights is named at once.
    weights = final_weights(run_folder)
    # Before the config is used: it may name code that anybody has put there.
    foreign = Foreign(run_folder, CALLED, trust, "--trust")
    config = load([str(run_folder / "config.yaml"), *overrides], foreign).config
    task = make_task(config)
    sets = open_datasets(config, task.columns)
    if not sets.evaluation:
        raise DataError(
            "the config names no samples to evaluate on. Set: data.eval_fraction=0.2, or "
            "data.eval_split=test"
        )
    batch_size = _micro_batch(run_folder)
    # Before the ranks meet: a launch that does not fit ends in a sentence, not in a hang.
    check_launcher(config)
    accelerator, ranks = connect(config)
    module = trained_model(config, weights)
    # As in training: where logits do not fit in memory there, they do not fit here.
    chunk_loss(module, task, config.memory.chunked_loss)
    # The plain module, before it is wrapped: casts are a hook on it.
    cast_arguments(module, parameter_dtype(config))
    module = accelerator.prepare_model(module, evaluation_mode=True)
    evaluate_module = Evaluation(
        sets=sets.evaluation,
        task=task,
        ranks=ranks,
        device=accelerator.device,
        dtype=parameter_dtype(config),
        batch_size=batch_size,
    )
    metrics = evaluate_module(module)
    accelerator.end_training()
    return metrics


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
