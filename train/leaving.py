"""How a run leaves that has failed: a step that all ranks have completed is saved first."""

import json
import os
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum

import torch

from train.checkpoint import SaveFailed
from train.checkpoint.commit import complete
from train.distributed.board import Board
from train.distributed.ranks import lost_rank
from train.errors import RanksDisagree
from train.memory.shortage import Shortage, Training, in_training
from train.models.activation_checkpointing import has_blocks
from train.report.folder import Displaced
from train.run import Run
from train.terminal import on_lines, write_lines

WAIT_SECONDS = 5.0  # for the other ranks to fail at the same place


class Save(Enum):
    """What became of saving the last step of a run that failed."""

    DONE = "done"
    NOT_TRIED = "not tried"
    STEP_NOT_APPLIED = "the ranks have the weights of the step before"
    FAILED = "failed"


def save_complete_step(run: Run, board: Board, error: BaseException) -> str:
    """Save what can be saved of a run that `error` ends, and say what, in sentences or ""."""
    step = run.report.progress.step
    outcome = _try_to_save(run, board, error)
    if outcome is Save.NOT_TRIED:
        return ""
    if outcome is Save.DONE:
        return f"Step {step:,} is saved. {_go_on(run)}"
    what = f"Step {step:,} could not be saved"
    if outcome is Save.STEP_NOT_APPLIED:
        # Without its number: under on_nonfinite=stop it was not counted, under skip it was.
        what = "Its step was not applied"
    return f"{what}: {_newest(run)}. {_go_on(run)}"


def _try_to_save(run: Run, board: Board, error: BaseException) -> Save:
    """Save a step that all ranks have completed and hold now, or can go back to.

    Where one rank alone fails within a step, nothing is saved: the others wait for it in the
    reduction.
    """
    first_line = str(error).strip().partition("\n")[0]
    if not lost_rank(error):
        board.pin("why", f"{socket.gethostname()}: {type(error).__name__}: {first_line}")
    step = run.report.progress.step
    if lost_rank(error) or (not step and not run.report.progress.evaluation_owed):
        return Save.NOT_TRIED
    # A second Ctrl-C leaves at once. A save that has failed, weights that differ among the ranks,
    # and a run that was saved in another folder already are not saved again.
    hopeless = isinstance(error, KeyboardInterrupt | SaveFailed | RanksDisagree | Displaced)
    if hopeless or not _agreed(run, board):
        return Save.NOT_TRIED
    try:
        run.save()
    except Exception as failure:
        # The error that ended the run is the one to report. Where the save is refused for the same
        # reason, that arose within the step: train.gradients.rank_consistency.
        return Save.STEP_NOT_APPLIED if str(failure) == str(error) else Save.FAILED
    return Save.DONE


@dataclass(frozen=True)
class Ended:
    reason: str
    is_common: bool
    """All ranks have ended alike, and know it."""


def out_of_memory(run: Run, board: Board, error: BaseException) -> Ended:
    """For a rank that has run out of memory. It is printed here, unless all ranks end alike."""
    step = run.report.progress.step
    most = run.complete_step.max_micro
    training = Training(
        rank=run.ranks.rank,
        steps_done=step,
        device=run.learner.device,
        is_sharded=run.learner.parallel.is_sharded,
        has_blocks=has_blocks(run.learner.module),
        config=run.config,
        plan=run.plan if most is None else replace(run.plan, batch=run.plan.batch.recut(most)),
        remembered=run.complete_step.max_micro_of_next_start,
        has_checkpoint=bool(complete(run.checkpoints.folder)),
    )
    shortage = in_training(error, training)
    own = json.dumps(asdict(shortage))
    board.pin("shortage", own)  # first: the other ranks may soon be gone
    # The frames hold the tensors that did not fit, and a save needs memory.
    traceback.clear_frames(error.__traceback__)
    is_saved = _try_to_save(run, board, error) is Save.DONE
    is_common = bool(is_saved or (not step and _of_all(run, board, "shortage", own)))
    resume_from = f"step {step:,} is saved" if is_saved else _newest(run)
    reason = shortage.message(resume_from)
    if not is_common:
        write_lines(on_lines(reason))
    return Ended(reason, is_common)


def shortage_elsewhere(run: Run, board: Board, kept: str = "") -> str:
    """What a rank that has run out of memory leaves for the others; empty where none has."""
    for text in board.read("shortage"):
        if text is not None:
            return Shortage(**json.loads(text)).message(_where_to_resume(run, kept))
    return ""


def loss_of_rank(run: Run, board: Board) -> str:
    """For a rank that has lost another one: which, why, and from which checkpoint to resume.

    It is printed here.
    """
    rank = run.ranks.rank
    shortage = shortage_elsewhere(run, board)
    if shortage:
        # The first line names the shortage; the rest is advice, once on each machine.
        is_first_of_machine = os.environ.get("LOCAL_RANK", "0") == "0"
        shown = shortage if is_first_of_machine else shortage.splitlines()[0]
        write_lines(on_lines(f"rank {rank}: {shown}"))
        return shortage
    reasons = []
    for other, why in enumerate(board.read("why")):
        if why is not None and other != rank:
            reasons.append(f"rank {other} on {why}")
    lost = "; ".join(reasons)
    if not lost:
        lost = "another rank is gone (killed, out of memory, or its machine is lost)"
    at = f"This rank was at step {run.report.progress.step:,}; {_newest(run)}"
    reason = f"{lost}. {at}. Run the same command again: it resumes from there"
    write_lines(on_lines(f"rank {rank}: {reason}"))
    return reason


def _where_to_resume(run: Run, kept: str) -> str:
    """`kept`: the sentences of save_complete_step, of which the first one alone applies here."""
    if not kept:
        return _newest(run)
    return kept.partition(". ")[0].replace("Step", "step")


def _newest(run: Run) -> str:
    checkpoints = complete(run.checkpoints.folder)
    if not checkpoints:
        return "there is no checkpoint yet"
    return f"the last complete checkpoint is {checkpoints[-1]}"


def _go_on(run: Run) -> str:
    return (
        "Once that is fixed, run the same command again; where code that computes was changed, "
        f"with checkpoint.resume={run.folder.path}"
    )


def _agreed(run: Run, board: Board) -> bool:
    """Whether all ranks come here, having completed the same step."""
    step = None
    with suppress(RuntimeError):  # memory is full, or the device is gone
        step = run.complete_step.put_back() if _finite(run) else None
    ends = _of_all(run, board, "end", json.dumps(step), hopeless=json.dumps(None))
    return len(set(ends)) == 1


def _of_all(run: Run, board: Board, subject: str, text: str, hopeless: str = "") -> list[str]:
    """The texts of all ranks, this one's `text`; [] where one is late, or has sent `hopeless`."""
    board.pin(subject, text)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        texts = [each for each in board.read(subject) if each is not None]
        if hopeless in texts or time.monotonic() > deadline:
            return []
        if len(texts) == run.ranks.world_size:
            return texts
        run.ranks.pulse.beat()
        time.sleep(0.01)


def _finite(run: Run) -> bool:
    return all(bool(torch.isfinite(p.detach()).all()) for p in run.learner.parameters)
