"""What a person sees and keeps of a run."""

from train.report.best import Best, UnknownDirection
from train.report.ending import BAD_CONFIG, FAILED, FINISHED, STOPPED, exit_code, tell, tell_launch
from train.report.folder import AlreadyFinished, FolderRefused, RunFolder, claim
from train.report.login import TrackerError, check_login
from train.report.opening import open_report
from train.report.plan import RunPlan
from train.report.progress import Interval, Progress
from train.report.redact import redacted
from train.report.reporter import Reporter

__all__ = [
    "BAD_CONFIG",
    "FAILED",
    "FINISHED",
    "STOPPED",
    "AlreadyFinished",
    "Best",
    "FolderRefused",
    "Interval",
    "Progress",
    "Reporter",
    "RunFolder",
    "RunPlan",
    "TrackerError",
    "UnknownDirection",
    "check_login",
    "claim",
    "exit_code",
    "open_report",
    "redacted",
    "tell",
    "tell_launch",
]
