"""What a person sees and keeps of a run."""

from train.report.best import Best, UnknownDirection
from train.report.claim import AlreadyFinished, claim
from train.report.folder import Displaced, FolderRefused, RunFolder
from train.report.login import TrackerError
from train.report.outlets import Outlets, open_outlets
from train.report.progress import Interval, Progress
from train.report.reporter import Reporter
from train.report.restarts import NoProgress
from train.report.state import RunState, checked_best

__all__ = [
    "AlreadyFinished",
    "Best",
    "Displaced",
    "FolderRefused",
    "Interval",
    "NoProgress",
    "Outlets",
    "Progress",
    "Reporter",
    "RunFolder",
    "RunState",
    "TrackerError",
    "UnknownDirection",
    "checked_best",
    "claim",
    "open_outlets",
]
