"""How a run leaves that has failed: what is whole on all ranks is saved first."""

import json
import time
from contextlib import suppress

import torch

from train.checkpoint import SaveFailed
from train.errors import RunFailed
from train.gradients.rank_consistency import RanksDisagree
from train.run import Run

WAIT_SECONDS = 5.0  # for the other ranks to fail at the same place


def save_what_is_whole(run: Run, error: BaseException) -> str:
    """A sentence on what is kept of a run that `error` ends; empty where nothing was trained.

    Saved is a step that all ranks have completed and hold now. A rank that fails alone, or in the midst of a step,
    saves nothing: the others have gone on to wait for it.
    """
    step = run.report.progress.step
    if not step and not run.report.progress.evaluation_owed:
        return ""
    # A second Ctrl-C leaves at once; a save that has failed, or weights that differ, are not to be tried again.
    hopeless = isinstance(error, KeyboardInterrupt | SaveFailed | RanksDisagree)
    if not hopeless and _agreed(run):
        with suppress(RunFailed, OSError):
            run.save()
            return f"Step {step:,} is saved. {_go_on(run)}"
    return ""


def _go_on(run: Run) -> str:
    return (
        f"Once that is mended, type the same command again; where code that computes was changed, with "
        f"checkpoint.resume={run.folder.path}"
    )


def _agreed(run: Run) -> bool:
    """Whether all ranks come here, having completed the same step."""
    step = run.whole.step
    if step is not None and not _finite(run):
        step = None
    board = run.ranks.board()
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
        time.sleep(0.01)


def _finite(run: Run) -> bool:
    return all(bool(torch.isfinite(p.detach()).all()) for p in run.learner.parameters)
