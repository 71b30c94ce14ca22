"""Saving and resuming: what is saved, the commit protocol, which checkpoint a run resumes from."""

from train.checkpoint.checkpoints import Checkpoints
from train.checkpoint.choose import NoCheckpoint, named, newest
from train.checkpoint.commit import SaveFailed, set_aside, sweep, sync
from train.checkpoint.files import check_savable

__all__ = [
    "Checkpoints",
    "NoCheckpoint",
    "SaveFailed",
    "check_savable",
    "named",
    "newest",
    "set_aside",
    "sweep",
    "sync",
]
