"""How a run leaves that has failed: what is whole on all ranks is saved first."""

import json
import socket
import time
from contextlib import suppress

import torch

from train.checkpoint import SaveFailed
from train.checkpoint.commit import complete
from train.distributed.board import Board
from train.distributed.ranks import lost_rank
from train.errors import RanksDisagree
from train.report.folder import Displaced
from train.run import Run

WAIT_SECONDS = 5.0  # for the other ranks to fail at the same place


def save_what_is_whole(run: Run, board: Board, error: BaseException) -> str:
    """A sentence on what is kept of a run that `error` ends; empty where nothing was trained.

    Saved is a step that all ranks have completed and hold now, or can go back to. Where one rank alone fails in the
    midst of a step, nothing is saved: the others wait for it in the reduction.
    """
    first_line = str(error).strip().partition("\n")[0]
    if not lost_rank(error):
        board.pin("why", f"{socket.gethostname()}: {type(error).__name__}: {first_line}")
    step = run.report.progress.step
    if lost_rank(error) or (not step and not run.report.progress.evaluation_owed):
        return ""
    # A second Ctrl-C leaves at once; a save that has failed, weights that differ, or what was saved beside already, are
    # not to be tried again.
    hopeless = isinstance(error, KeyboardInterrupt | SaveFailed | RanksDisagree | Displaced)
    if not hopeless and _agreed(run, board):
        # Whatever goes wrong now: the error that ended the run is the one to be reported.
        with suppress(Exception):
            run.save()
            return f"Step {step:,} is saved. {_go_on(run)}"
    return ""


def loss_of_rank(run: Run, board: Board) -> str:
    """For a rank that has lost another one: which, why where that one could say it, and what there is to go on from."""
    said = []
    for rank, why in enumerate(board.read("why")):
        if why is not None and rank != run.ranks.rank:
            said.append(f"rank {rank} on {why}")
    lost = "; ".join(said) or "another rank is gone (killed, out of memory, or its machine is lost)"
    there = complete(run.checkpoints.folder)
    newest = f"the last complete checkpoint is {there[-1]}" if there else "there is no checkpoint yet"
    step = run.report.progress.step
    return f"{lost}. This rank was at step {step:,}; {newest}. Type the same command again: it goes on from there"


def _go_on(run: Run) -> str:
    return (
        f"Once that is mended, type the same command again; where code that computes was changed, with "
        f"checkpoint.resume={run.folder.path}"
    )


def _agreed(run: Run, board: Board) -> bool:
    """Whether all ranks come here, having completed the same step."""
    step = None
    with suppress(RuntimeError):  # memory that is full, a device that is gone
        step = run.whole.put_back() if _finite(run) else None
    board.pin("end", json.dumps(step))
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        ends = board.read("end")
        known = [end for end in ends if end is not None]
        if json.dumps(None) in known:
            return False
        if len(known) == run.ranks.world_size:
            return len(set(known)) == 1
        if time.monotonic() > deadline:
            return False
        run.ranks.pulse.beat()
        time.sleep(0.01)


def _finite(run: Run) -> bool:
    return all(bool(torch.isfinite(p.detach()).all()) for p in run.learner.parameters)
