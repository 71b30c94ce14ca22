"""What the guard against drifting ranks costs, on 2 ranks.

OMP_NUM_THREADS=1 python -m tests.campaigns.guard        prints a table for docs/results/cost.md
"""

import tempfile
import time
from collections.abc import Callable
from statistics import median

from tests.conftest import run_ranks
from train.config import load
from train.distributed.ranks import Ranks
from train.gradients import rank_consistency as guard
from train.run import build
from train.step import Learner

MODELS = ("[256,256]", "[2048,2048,256]")  # hidden layers


def measure(folder: str, hidden: str) -> tuple[int, float, float, float]:
    """(parameters, seconds of a step, of the check at each step, of the comparison of all weights
    and gradients).
    """
    overrides = (
        "batch.micro=25",
        f"model.args.hidden={hidden}",
        "wandb.mode=disabled",
        "log.every_steps=1000000",
    )
    run = build(
        load(
            ["configs/digits.yaml", f"output_dir={folder}", "checkpoint.resume=never", *overrides]
        ),
        "accumulate",
    )
    from train.accumulate import compute_gradient
    from train.step import update

    steps, checks, comparisons = [], [], []

    def timed(function: Callable[..., object], *args: object) -> float:
        start = time.perf_counter()
        function(*args)
        return time.perf_counter() - start

    def compare(learner: Learner, ranks: Ranks) -> None:
        guard._check_agreement(guard._weights(learner) | guard._gradients(learner), "", "", ranks)

    for window in run.windows:
        start = time.perf_counter()
        compute_gradient(run.learner, window)
        gradient_seconds = time.perf_counter() - start
        checks.append(timed(guard._check_reduction, run.learner, window.k, run.ranks))
        run.ranks.barrier()  # waiting for the other rank is no cost of the comparison
        comparisons.append(timed(compare, run.learner, run.ranks))
        steps.append(gradient_seconds + timed(update, run.learner, 1e-3))
        if window.k == 60:
            break
    run.report.close("measured", 0)
    parameters = sum(p.numel() for p in run.learner.parameters)
    return parameters, median(steps[10:]), median(checks[10:]), median(comparisons[10:])


def main() -> None:
    print(
        "| parameters | step | flag, each step | weights and gradients, every 100 steps | share of "
        "a step's time |"
    )
    print("|---|---|---|---|---|")
    for hidden in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            parameters, step, check, comparison = run_ranks(2, measure, folder, hidden)[0]
        share = (check + comparison / guard.EVERY_STEPS) / step
        print(
            f"| {parameters:,} | {step * 1e3:.2f} ms | {check * 1e6:.1f} us | "
            f"{comparison * 1e3:.2f} ms | {share:.2%} |"
        )


if __name__ == "__main__":
    main()
