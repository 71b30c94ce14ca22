"""A run whose folder was moved, deleted or replaced under it: its state is saved in a new folder
beside, and it ends.
"""

from collections.abc import Callable
from typing import Any

from train.checkpoint import Checkpoints
from train.report.folder import Displaced, RunFolder


def save_in_own(checkpoints: Checkpoints, folder: RunFolder) -> Callable[..., None]:
    """checkpoints.save, which checks first that the folder is still this run's.

    Where it is not, raises Displaced on all ranks, after the save into a new folder. The folder of
    another run that has the name now is not touched.
    """

    def save(step: int, **options: Any) -> None:
        # Rank 0 holds the lock, so it alone can know; all ranks go the same way.
        if checkpoints.ranks.from_main(folder.is_held):
            checkpoints.save(step, **options)
            return
        lost = folder.path
        # The path follows on every rank: a save is one of all ranks, each with files of its own.
        folder.path = checkpoints.ranks.from_main(folder.move_beside)
        checkpoints.folder = folder.path / "checkpoints"
        checkpoints.save(step, **options)
        raise Displaced(
            f"{lost} was moved or deleted under this run, or is another run's by now; nothing "
            f"there was changed. Saved at step {step} in {folder.path} instead. To resume from it, "
            f"run the same command with: name={folder.path.name}"
        )

    return save
