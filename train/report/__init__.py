"""What a person sees and keeps of a run."""

from train.report.best import Best, UnknownDirection
from train.report.claim import claim
from train.report.earlier_start import AlreadyFinished
from train.report.folder import Displaced, RunFolder
from train.report.folder_lock import FolderRefused
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
