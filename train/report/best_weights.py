"""best/: the weights of the best evaluation so far, always complete, and of a step that the run
knows.

best.json lies beside them and holds which evaluation that was. A run that is killed resumes from
its newest checkpoint, which knows the best evaluation up to there: where a better one comes before
the next checkpoint, the weights that it replaces are kept as best.before until that checkpoint is
made. So a resume finds those of the best that it knows, and sets aside those of steps that were
lost.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.checkpoint import set_aside, sync
from train.checkpoint.manifest import entry
from train.disk import read_json, remove
from train.distributed.ranks import Ranks
from train.errors import print_error
from train.models.weights import NotSaved
from train.report.best import Best
from train.report.progress import Progress

BEST = "best"
BEFORE = "best.before"
EVALUATION = "best.json"
UNFINISHED = ".best.unfinished"
REMOVED = ".best.removed"


def write(run_folder: Path, best: Best, write_weights: Callable[[Path], object]) -> None:
    """`write_weights(folder)` puts the weights there. On one rank.

    Raises NotSaved; what was there before then stays.
    """
    try:
        _write(run_folder / UNFINISHED, best, write_weights)
        _replace(run_folder)
    except OSError as error:
        raise NotSaved(
            f"could not write {run_folder / BEST}: {error}. Run the same command again once that "
            "is fixed; it resumes from the newest checkpoint"
        ) from error


def _write(unfinished: Path, best: Best, write_weights: Callable[[Path], object]) -> None:
    # What a killed write has left: best/ is renamed from here as a whole, leftovers included.
    remove(unfinished)
    unfinished.mkdir()
    write_weights(unfinished)
    # Hashed as a checkpoint's files are, so that a resume knows whether the weights are whole.
    files = {}
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            files[path.relative_to(unfinished).as_posix()] = entry(path)
    evaluation = _evaluation(best) | {"files": files}
    text = json.dumps(evaluation, indent=1) + "\n"
    (unfinished / EVALUATION).write_text(text, encoding="utf-8")
    # The folder last: its names must not be on disk before what they name.
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)


def _replace(run_folder: Path) -> None:
    """best.before, where it exists, is what the newest checkpoint knows: it stays, and best/, which
    no checkpoint knows yet, is removed.
    """
    best = run_folder / BEST
    before = run_folder / BEFORE
    removed = run_folder / REMOVED
    shutil.rmtree(removed, ignore_errors=True)
    # A rename first, since rmtree of best/ could be killed in the middle and leave half of it.
    if os.path.lexists(best):
        best.rename(removed if before.exists() else before)
    (run_folder / UNFINISHED).rename(best)
    sync(run_folder)
    shutil.rmtree(removed, ignore_errors=True)


def forget_before(run_folder: Path) -> None:
    """A checkpoint was made: it knows of best/. To be called on one rank."""
    shutil.rmtree(run_folder / BEFORE, ignore_errors=True)


def settle(run_folder: Path, best: Best, ranks: Ranks, progress: Progress) -> None:
    """Where a run resumes: bring best/ to the evaluation that its checkpoint knows as `best`.

    Where those weights are gone, `best` begins again, so that it is never another one than that of
    best/. Where an evaluation is owed, it is done first, and writes the weights of its step again:
    they are removed.
    """
    # The evaluation of this very step follows at once: its weights will be there again.
    owed_step = progress.step if progress.evaluation_owed else None
    # On rank 0, which owns the folder. All ranks forget alike: the next evaluation is judged on
    # each.
    if not ranks.from_main(lambda: _settle(run_folder, best, owed_step)):
        best.forget()


def _settle(run_folder: Path, best: Best, owed_step: int | None = None) -> bool:
    """Whether best/ now holds what is known as the best; also where nothing is known."""
    # Names that only a killed write can leave.
    for left in (UNFINISHED, REMOVED):
        shutil.rmtree(run_folder / left, ignore_errors=True)
    folders = (run_folder / BEST, run_folder / BEFORE)
    matching = next((folder for folder in folders if _holds(folder, best)), None)
    for folder in folders:
        if folder == matching or not folder.exists():
            continue
        if matching is not None and folder.name == BEFORE:
            # Older than what the checkpoint knows: a kill came before forget_before.
            shutil.rmtree(folder)
        else:
            _clear(folder, owed_step)
    if matching is not None:
        # Now the checkpoint's best is best/ again, so best.before is free for the next one.
        if matching.name != BEST:
            matching.rename(run_folder / BEST)
        sync(run_folder)
        return True
    if best.value is None:
        return True
    print_error(
        f"the weights of the best evaluation so far ({best}) are not in {run_folder}: the search "
        "for the best begins again"
    )
    return False


def _clear(folder: Path, owed_step: int | None) -> None:
    """Weights of another evaluation: removed where that is done again, else kept aside."""
    if owed_step is not None and _step_of(folder) == owed_step:
        shutil.rmtree(folder)
        return
    aside = set_aside(folder, "abandoned")
    print_error(f"{folder} holds weights of steps that this run resumes without; now {aside}")


def _holds(folder: Path, best: Best) -> bool:
    """Whether its files are as they were written, for the evaluation `best`."""
    try:
        evaluation: dict[str, Any] = read_json(folder / EVALUATION, {"files": dict})
        files = evaluation.pop("files")
        if evaluation != _evaluation(best):
            return False
        return all(entry(folder / name) == files[name] for name in files)
    # Whatever is in the file: one that anybody has edited means that the weights cannot be trusted.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _step_of(folder: Path) -> Any:
    try:
        return json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluation(best: Best) -> dict[str, Any]:
    return {"step": best.step, "metric": best.metric, "value": best.value}
