"""What a person sees and keeps of a run."""

from train.report.ending import BAD_CONFIG, FAILED, FINISHED, end_process
from train.report.plan import RunPlan
from train.report.progress import Interval
from train.report.reporter import Reporter

__all__ = ["BAD_CONFIG", "FAILED", "FINISHED", "Interval", "Reporter", "RunPlan", "end_process"]
