"""What both entry points do around the loop: parse, build, fit, close."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from train.checkpoint import NoCheckpoint, SaveFailed
from train.config import Loaded, load
from train.data import WorkerLost
from train.guard import NotReduced, RanksDisagree
from train.loop import fit
from train.preparing import show_plan
from train.ranks import give_way, launched_rank
from train.refusals import REFUSALS, code_of
from train.report import (
    BAD_CONFIG,
    FAILED,
    FINISHED,
    STOPPED,
    AlreadyFinished,
    exit_code,
    tell,
    tell_launch,
)
from train.run import build
from train.saved import NotSaved
from train.smoke import smoke
from train.step import ComputeGradient, NonFiniteGradient


@dataclass(frozen=True)
class Ending:
    reason: str
    code: int
    step: int = 0


def main(argv: Sequence[str], loop: str, compute_gradient: ComputeGradient) -> int:
    """Train as the command line says.

    Returns the exit code: 0 finished, 2 bad config or data, 75 stopped on request and saved, 1 anything else.
    """
    is_main = launched_rank() == 0
    try:
        loaded = load(argv)
        if "--print-config" in loaded.flags:
            print(loaded.yaml(), end="")
            return FINISHED
        if "--plan" in loaded.flags:
            show_plan(loaded, loop)
            return FINISHED
        if "--smoke" in loaded.flags:
            with smoke(loaded, is_main) as small:
                ended = train(small, loop, compute_gradient)
        else:
            ended = train(loaded, loop, compute_gradient)
    except REFUSALS as error:
        ended = Ending(str(error), BAD_CONFIG)
    except NoCheckpoint as error:
        ended = Ending(str(error), FAILED)
    except AlreadyFinished as error:
        ended = Ending(str(error), FINISHED)
    except RuntimeError as error:
        give_way(error)
        raise
    if ended.reason != "finished":
        tell(ended.reason)
    return exit_code(ended.reason, ended.code, ended.step, is_main)


def train(loaded: Loaded, loop: str, compute_gradient: ComputeGradient) -> Ending:
    """Build, fit, close."""
    run = build(loaded, loop)
    try:
        fit(run, run.watch(compute_gradient))
        reason, code = "finished", FINISHED
        if run.report.progress.step < run.plan.total_steps:
            run.save()
            cause = next(filter(None, run.ranks.gather(run.stop.cause)))  # it may have reached another rank only
            reason, code = f"stopped by {cause}", STOPPED
        else:
            run.finish()
    except (NonFiniteGradient, NotReduced, NotSaved, RanksDisagree, SaveFailed, WorkerLost) as error:
        give_way(error)
        reason, code = str(error), FAILED
    except BaseException as error:
        run.report.close(f"{type(error).__name__}: {error}", code_of(error))
        raise
    with suppress(OSError):  # exit_code writes it again. First: a signal may end this process while weights are sent
        tell_launch(reason, code, run.report.progress.step, run.ranks.is_main)
    run.report.close(reason, code)
    run.ranks.settle()
    run.learner.accelerator.end_training()
    return Ending(reason, code, run.report.progress.step)
