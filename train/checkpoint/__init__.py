"""Saving and resuming: what is saved, the commit protocol, which checkpoint a run goes on from."""

from train.checkpoint.checkpoints import Checkpoints, HasState
from train.checkpoint.choose import NoCheckpoint, named, newest
from train.checkpoint.commit import SaveFailed

__all__ = [
    "Checkpoints",
    "HasState",
    "NoCheckpoint",
    "SaveFailed",
    "named",
    "newest",
]
