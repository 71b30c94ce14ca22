"""What the comparison of ranks costs (train/gradients/rank_consistency.py), on 2 ranks.

OMP_NUM_THREADS=1 python -m tests.campaigns.guard        prints a table for docs/results/cost.md
"""

import tempfile
import time
from dataclasses import dataclass
from statistics import median

from tests.conftest import run_ranks
from train.accumulate import compute_gradient
from train.config import load
from train.gradients import rank_consistency
from train.run import build
from train.step import update

MODELS = ("[256,256]", "[2048,2048,256]")  # hidden layers
WARM_UP_STEPS = 10
STEPS = 60


@dataclass(frozen=True)
class Cost:
    parameters: int
    step_seconds: float
    comparison_seconds: float  # of all weights and gradients


def measure(folder: str, hidden: str) -> Cost:
    overrides = (
        f"output_dir={folder}",
        "checkpoint.resume=never",
        "batch.micro=25",
        f"model.args.hidden={hidden}",
        "wandb.mode=disabled",
        "log.every_steps=1000000",
    )
    run = build(load(["configs/digits.yaml", *overrides]), "accumulate")
    learner = run.learner
    steps = []
    comparisons = []
    for window in run.windows:
        start = time.perf_counter()
        compute_gradient(learner, window)
        gradient_seconds = time.perf_counter() - start
        run.ranks.barrier()  # waiting for the other rank is no cost of the comparison

        start = time.perf_counter()
        tensors = rank_consistency._weights(learner) | rank_consistency._gradients(learner)
        rank_consistency._check_agreement(tensors, "", "", run.ranks)
        comparisons.append(time.perf_counter() - start)

        start = time.perf_counter()
        update(learner, 1e-3)
        steps.append(gradient_seconds + time.perf_counter() - start)
        if window.k == STEPS:
            break
    run.report.close("measured", 0)
    return Cost(
        parameters=sum(p.numel() for p in learner.parameters),
        step_seconds=median(steps[WARM_UP_STEPS:]),
        comparison_seconds=median(comparisons[WARM_UP_STEPS:]),
    )


def main() -> None:
    print("| parameters | step | weights and gradients, every 100 steps | share of a step's time |")
    print("|---|---|---|---|")
    for hidden in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            cost = run_ranks(2, measure, folder, hidden)[0]
        share = cost.comparison_seconds / rank_consistency.EVERY_STEPS / cost.step_seconds
        print(
            f"| {cost.parameters:,} | {cost.step_seconds * 1e3:.2f} ms | "
            f"{cost.comparison_seconds * 1e3:.2f} ms | {share:.2%} |"
        )


if __name__ == "__main__":
    main()
