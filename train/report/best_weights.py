"""best/: the weights of the best evaluation so far, always whole, and of a step that the run knows.

best.json lies beside them and tells which evaluation that was. A run that is killed resumes from
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

BEST, BEFORE, TOLD = "best", "best.before", "best.json"
UNFINISHED, REMOVED = ".best.unfinished", ".best.removed"


def write(run_folder: Path, best: Best, write_weights: Callable[[Path], object]) -> None:
    """`write_weights(folder)` puts the weights there. On one rank. Raises NotSaved; what was there
    then stays.
    """
    try:
        _write(run_folder / UNFINISHED, best, write_weights)
        _replace(run_folder)
    except OSError as error:
        raise NotSaved(
            f"could not write {run_folder / BEST}: {error}. Type the same command again once that "
            "is fixed; it goes on from the newest checkpoint"
        ) from error


def _write(unfinished: Path, best: Best, write_weights: Callable[[Path], object]) -> None:
    remove(unfinished)
    unfinished.mkdir()
    write_weights(unfinished)
    written = sorted(path for path in unfinished.rglob("*") if path.is_file())
    files = {path.relative_to(unfinished).as_posix(): entry(path) for path in written}
    (unfinished / TOLD).write_text(
        json.dumps(_evaluation(best) | {"files": files}, indent=1) + "\n", encoding="utf-8"
    )
    for path in (*unfinished.rglob("*"), unfinished):
        sync(path)


def _replace(run_folder: Path) -> None:
    best, before, removed = (run_folder / name for name in (BEST, BEFORE, REMOVED))
    shutil.rmtree(removed, ignore_errors=True)
    if os.path.lexists(best):
        best.rename(removed if before.exists() else before)
    (run_folder / UNFINISHED).rename(best)
    sync(run_folder)
    shutil.rmtree(removed, ignore_errors=True)


def forget_before(run_folder: Path) -> None:
    """A checkpoint was made: it knows of best/. To be called on one rank."""
    shutil.rmtree(run_folder / BEFORE, ignore_errors=True)


def settle(run_folder: Path, best: Best, ranks: Ranks, progress: Progress) -> None:
    """Where a run resumes: best/ is brought to the evaluation that its checkpoint knows as `best`.

    Where those weights are gone, `best` begins anew, so that it is never another one than that of
    best/. Where an evaluation is owed, it is done first, and writes the weights of its step again:
    they are removed.
    """
    owed_step = progress.step if progress.evaluation_owed else None
    if not ranks.from_main(lambda: _settle(run_folder, best, owed_step)):
        best.forget()


def _settle(run_folder: Path, best: Best, owed_step: int | None = None) -> bool:
    """Whether best/ now holds what is known as the best; also where nothing is known."""
    for left in (UNFINISHED, REMOVED):
        shutil.rmtree(run_folder / left, ignore_errors=True)
    places = [run_folder / name for name in (BEST, BEFORE)]
    found = next((place for place in places if _holds(place, best)), None)
    for place in places:
        if place == found or not place.exists():
            continue
        if owed_step is not None and _step_of(place) == owed_step:
            shutil.rmtree(place)
        else:
            print_error(
                f"{place} holds weights of steps that this run goes on without; now "
                f"{_abandoned(place)}"
            )
    if found is None:
        if best.value is not None:
            print_error(
                f"the weights of the best evaluation so far ({best}) are not in {run_folder}: it "
                "begins anew"
            )
        return best.value is None
    if found.name != BEST:
        found.rename(run_folder / BEST)
    sync(run_folder)
    return True


def _abandoned(place: Path) -> Path:
    return set_aside(place, "abandoned")


def _holds(place: Path, best: Best) -> bool:
    try:
        told: dict[str, Any] = read_json(place / TOLD, {"files": dict})
        files = told.pop("files")
        return told == _evaluation(best) and all(
            entry(place / name) == files[name] for name in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _step_of(place: Path) -> Any:
    try:
        return json.loads((place / TOLD).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluation(best: Best) -> dict[str, Any]:
    return {"step": best.step, "metric": best.metric, "value": best.value}
