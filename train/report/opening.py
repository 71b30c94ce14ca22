"""Opens what rank 0 tells of a run: the files of its folder, the screen, the journal, the tracker."""

from typing import Any

from train.config import Loaded
from train.report.best import Best
from train.report.folder import RunFolder, job_id
from train.report.journal import Journal
from train.report.plan import RunPlan
from train.report.reporter import Reporter
from train.report.screen import Screen


def open_report(loaded: Loaded, plan: RunPlan, best: Best, folder: RunFolder, facts: dict[str, Any]) -> Reporter:
    """Write down what is known before the first step, and say it. `facts`: about the learner, for tables."""
    folder.write_text("config.yaml", loaded.yaml())
    folder.write_json("plan.json", plan.as_dict())
    folder.write_json("environment.json", {"job": job_id()})
    screen = Screen(plan.total_steps, (folder.path / "log.txt").open("a", encoding="utf-8"))
    journal = Journal(folder.path / "metrics.jsonl")
    if folder.moved_to:
        screen.say(f"an earlier run of this name is now in {folder.moved_to}")
    screen.say(*plan.lines(), f"outputs   {folder.path}")
    return Reporter(plan, best, [journal, screen], folder, screen)
