"""What both entry points do around the loop: parse, build, fit, close."""

from collections.abc import Sequence

from train.config import ConfigError, Loaded, load
from train.data import DataError
from train.exact import NotExact, TaskError
from train.loop import fit
from train.planning import PlanError
from train.ranks import launched_rank
from train.report import (
    BAD_CONFIG,
    FAILED,
    FINISHED,
    AlreadyFinished,
    FolderRefused,
    TrackerError,
    UnknownDirection,
    end_process,
)
from train.run import Run, build, show_plan
from train.smoke import smoke
from train.step import ComputeGradient, NonFiniteGradient

REFUSALS = (
    ConfigError,
    DataError,
    FolderRefused,
    NotExact,
    PlanError,
    TaskError,
    TrackerError,
    UnknownDirection,
)
"""What the user can mend by typing something else: told without a stack trace."""


def main(argv: Sequence[str], loop: str, compute_gradient: ComputeGradient) -> int:
    """Train as the command line says.

    Returns the exit code: 0 finished, 2 bad config or data, 128 + n stopped by signal n, 1 anything else.
    """
    is_main = launched_rank() == 0
    try:
        loaded = load(argv)
        if "--print-config" in loaded.flags:
            print(loaded.yaml(), end="")
        elif "--plan" in loaded.flags:
            show_plan(loaded, loop)
        elif "--smoke" in loaded.flags:
            return smoke(loaded, lambda small: train(small, loop, compute_gradient), is_main)
        else:
            return train(loaded, loop, compute_gradient)
    except REFUSALS as error:
        return end_process(str(error), BAD_CONFIG, is_main=is_main, complain=True)
    except AlreadyFinished as error:
        return end_process(str(error), FINISHED, is_main=is_main, complain=True)
    return FINISHED


def train(loaded: Loaded, loop: str, compute_gradient: ComputeGradient) -> int:
    run = build(loaded, loop)
    try:
        fit(run, run.watch(compute_gradient))
        if run.report.progress.step < run.plan.total_steps:
            stopped_by = next(filter(None, run.ranks.gather(run.stop.signal)))  # it may have reached another rank only
            return _close(run, f"stopped by {stopped_by.name}", 128 + stopped_by)
        run.save()
    except NonFiniteGradient as error:
        return _close(run, str(error), FAILED)
    except BaseException as error:
        _close(run, f"{type(error).__name__}: {error}", FAILED)
        raise
    return _close(run, "finished", FINISHED)


def _close(run: Run, reason: str, code: int) -> int:
    run.report.close(reason, code)
    return end_process(reason, code, run.report.progress.step, is_main=run.ranks.is_main, complain=code != FINISHED)
