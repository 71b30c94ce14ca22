"""What both training entry points do around the loop: parse, build, fit, close."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from train.checkpoint import NoCheckpoint
from train.config import Loaded, load
from train.distributed.board import Board
from train.distributed.ranks import launched_rank, lost_rank, yield_to_failed_rank
from train.distributed.watchdog import watched
from train.errors import (
    FAILED,
    FINISHED,
    STOPPED,
    RankFailed,
    RunFailed,
    UserError,
    code_of,
    entry_point,
    exit_code,
    is_out_of_memory,
    print_error,
    write_ending,
)
from train.evaluation.lockstep import EvaluationStopped
from train.leaving import loss_of_rank, out_of_memory, save_complete_step, shortage_elsewhere
from train.loop import fit
from train.memory.shortage import at_start
from train.optim.skipped_steps import NonFiniteGradient
from train.plan.make import show_plan
from train.plan.smoke import smoke
from train.report import AlreadyFinished, Displaced, NoProgress
from train.run import Run, build
from train.step import ComputeGradient
from train.terminal import on_lines, write_lines


@dataclass(frozen=True)
class Ending:
    reason: str
    code: int
    step: int = 0


@entry_point
def main(argv: Sequence[str], loop: str, compute_gradient: ComputeGradient) -> int:
    """Train as the command line says.

    Returns the exit code: 0 finished, 2 bad config, data or launch, 75 stopped on request and
    saved, 1 anything else.
    """
    loaded = load(argv)
    if "--print-config" in loaded.flags:
        print(loaded.yaml(), end="")
        return FINISHED
    if "--plan" in loaded.flags:
        show_plan(loaded, loop)
        return FINISHED
    ended = _train_once(loaded, loop, compute_gradient)
    if ended.reason != "finished":
        print_error(ended.reason)
    return exit_code(ended.reason, ended.code, ended.step)


def _train_once(loaded: Loaded, loop: str, compute_gradient: ComputeGradient) -> Ending:
    try:
        if "--smoke" in loaded.flags:
            with smoke(loaded, launched_rank() == 0) as small:
                return train(small, loop, compute_gradient)
        return train(loaded, loop, compute_gradient)
    except (NoCheckpoint, NoProgress) as error:
        return Ending(str(error), FAILED)
    except AlreadyFinished as error:
        return Ending(str(error), FINISHED)
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):  # before the first step
            shortage = at_start(error, launched_rank(), loaded.config)
            # By an exit code that is not 0: the other ranks may wait for this one.
            reason = shortage.message("all that was there before")
            write_lines(on_lines(reason))
            with suppress(OSError):
                write_ending(reason, FAILED, 0, alone=True)
            raise SystemExit(FAILED) from error
        if isinstance(error, RuntimeError):
            yield_to_failed_rank(error)
        raise


@dataclass(frozen=True)
class Left:
    """How a run was left that is still to be closed."""

    reason: str
    code: int
    error: BaseException | None = None
    """To be raised once the run is closed."""
    alone: bool = False
    """Memory ran out on this rank, and the others wait for it in the reduction."""


def train(loaded: Loaded, loop: str, compute_gradient: ComputeGradient) -> Ending:
    """Build, fit, close."""
    run = build(loaded, loop)
    deadline = loaded.config.runtime.timeout_seconds
    progress = run.report.progress
    with watched(run.ranks, deadline, run.folder.path, lambda: progress.step, run.folder.end_early):
        left = _fit(run, compute_gradient)
    if left.error is None or left.alone:
        with suppress(OSError):
            # exit_code writes it again. Written here already, since a signal may end this process
            # while weights are uploaded.
            write_ending(left.reason, left.code, progress.step, left.alone)
    # Outside of the watchdog: it may wait long for W&B.
    run.close(left.reason, left.code)
    if left.error is not None:
        raise left.error
    run.ranks.settle()
    run.learner.accelerator.end_training()
    return Ending(left.reason, left.code, progress.step)


def _fit(run: Run, compute_gradient: ComputeGradient) -> Left:
    # Opened before anything can fail: a connection to a store that is gone would block.
    board = run.ranks.board()
    try:
        fit(run, run.watch(compute_gradient))
        return _finish(run)
    except EvaluationStopped:
        return _stopped(run)
    except NonFiniteGradient as error:
        return _failed(run, board, _cause(run, error))
    except BaseException as error:
        return _failed(run, board, error)


def _cause(run: Run, error: NonFiniteGradient) -> Exception:
    """The error of reading, where a gradient is NaN because one rank could not read its samples."""
    try:
        run.ranks.together(run.ranks.alone.check_whole)
    except Exception as unread:
        return unread
    return error


def _failed(run: Run, board: Board, error: BaseException) -> Left:
    if is_out_of_memory(error):
        ended = out_of_memory(run, board, error)
        if ended.is_common:
            return Left(ended.reason, FAILED)
        return Left(ended.reason, FAILED, SystemExit(FAILED), alone=True)
    kept = save_complete_step(run, board, error)
    if lost_rank(error):
        yield_to_failed_rank(cast(RuntimeError, error))
        reason = loss_of_rank(run, board)
        return Left(reason, FAILED, SystemExit(FAILED))
    if not isinstance(error, UserError | RunFailed):
        reason = f"{type(error).__name__}: {error}"
        if kept:
            print_error(kept)
        # sys.exit(0) in the user's code does not mean that this run has finished.
        if isinstance(error, SystemExit):
            print_error(reason)
            error = SystemExit(FAILED)
        return Left(_and_kept(reason, kept), code_of(error), error)
    if isinstance(error, RunFailed):
        yield_to_failed_rank(error)
    reason = _and_kept(str(error), kept)
    if isinstance(error, RankFailed):
        reason = shortage_elsewhere(run, board, kept) or reason
    # On all ranks alike: one sentence, no stack trace.
    return Left(reason, code_of(error))


def _and_kept(reason: str, kept: str) -> str:
    """`kept`: a sentence on what is saved; may be empty."""
    return f"{reason}. {kept}" if kept else reason


def _finish(run: Run) -> Left:
    """Save what was trained."""
    if run.report.progress.step < run.plan.total_steps:
        return _stopped(run)
    try:
        run.finish()
    except Displaced:
        run.save()  # in another folder: raises Displaced again, which names it
        raise
    run.ranks.together(run.ranks.alone.check)
    return Left("finished", FINISHED)


def _stopped(run: Run) -> Left:
    """All ranks have agreed on a stop."""
    run.save()  # also that an evaluation is owed, where the stop has cut it short
    run.ranks.together(run.ranks.alone.check)
    # The signal may have reached another rank only.
    cause = next(filter(None, run.ranks.gather(run.stop.cause)))
    return Left(f"stopped by {cause}", STOPPED)
