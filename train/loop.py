"""The only loop. It counts optimizer steps; how the gradient of a step is computed is all that its two users differ in."""

from collections.abc import Callable, Sequence

from torch import Tensor

from train.config import ConfigError, load
from train.ranks import launched_rank
from train.report import BAD_CONFIG, FAILED, FINISHED, end_process
from train.run import DataError, PlanError, Run, build, show_plan
from train.step import NonFiniteGradient, update
from train.window import Window

ComputeGradient = Callable[[Run, Window], Tensor]


def fit(run: Run, compute_gradient: ComputeGradient) -> None:
    """Train from the first window to the last, or to the one before which all ranks agreed to stop."""
    run.begin()
    for window in run.windows:
        loss = norm = None
        if window.weight:  # else no label counts on any rank: there is no gradient, and nothing moves
            loss = compute_gradient(run, window)
            norm = update(run.learner, run.plan.rate.at(window.k))
        run.after_step(window, loss, norm)


def main(argv: Sequence[str], loop: str, compute_gradient: ComputeGradient) -> int:
    """Parse, build, fit, close. Returns the exit code: 0 finished, 2 bad config or data, 128 + n stopped by signal n."""
    is_main = launched_rank() == 0
    try:
        loaded = load(argv)
        if "--print-config" in loaded.flags:
            print(loaded.yaml(), end="")
            return FINISHED
        if "--plan" in loaded.flags:
            show_plan(loaded, loop)
            return FINISHED
        run = build(loaded, loop)
    except (ConfigError, DataError, PlanError) as error:
        return end_process(str(error), BAD_CONFIG, is_main=is_main, complain=True)
    try:
        fit(run, compute_gradient)
    except NonFiniteGradient as error:
        return run.close(str(error), FAILED)
    except BaseException as error:
        run.close(f"{type(error).__name__}: {error}", FAILED)
        raise
    if run.stop.signal and run.report.progress.step < run.plan.total_steps:
        return run.close(f"stopped by {run.stop.signal.name}", 128 + run.stop.signal)
    run.save_final()
    return run.close("finished", FINISHED)
