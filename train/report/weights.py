"""wandb.log_model: the weights of a run that has finished, in W&B too, as an artifact."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from train.report.tracker import Tracker, first_line

UPLOAD_SECONDS = 1800.0
"""How long the end of a run may wait for them."""


def log_model(tracker: Tracker, folder: Path) -> str:
    """Send all files of a folder to W&B, and give a line that says so; empty where the run is not
    tracked, or W&B has failed.

    Returns at once. Closing the tracker waits for it, and a failure costs a warning.
    """
    if tracker.run_id is None or tracker.failed:
        return ""
    # Longer by the time of the upload: close() would else give up after that of the rows.
    tracker.finish_seconds += UPLOAD_SECONDS
    tracker.do(partial(_send, tracker), folder)
    return f"weights   {folder} goes to W&B"


def _send(tracker: Tracker, run: Any, folder: Path) -> None:
    import wandb  # here: only a run that is tracked pays for it

    try:
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        with _path_to_send(folder, run.offline) as path:
            # Nothing changes these files any more: no copy of them is made, neither for the upload
            # nor for later.
            artifact.add_dir(path, skip_cache=True, policy="immutable")
            logged = run.log_artifact(artifact)
            if not run.offline:
                logged.wait(int(UPLOAD_SECONDS))
    except Exception as error:  # the run itself has yet to be finished
        tracker.warn(f"{folder} was not sent ({first_line(error)})")


@contextmanager
def _path_to_send(folder: Path, offline: bool) -> Iterator[str]:
    """The path of the folder to hand to W&B, which is sent the files' paths too.

    It is that of a link, so that W&B does not learn where the folder is. Offline, paths must last
    until `wandb sync` sends them: they are relative to the folder in which that is run.
    """
    if offline:
        yield os.path.relpath(folder)
        return
    with TemporaryDirectory(prefix="isobatch-") as temporary:
        link = Path(temporary) / "model"
        link.symlink_to(folder.absolute())
        yield str(link)
