"""Joins what is told of a run: the screen, the run folder and its journal. Every rank has one; only rank 0's speaks."""

from collections.abc import Mapping

from train import names
from train.report.ending import ending
from train.report.folder import RunFolder
from train.report.journal import Journal
from train.report.plan import RunPlan
from train.report.progress import Clock, Progress
from train.report.screen import Screen
from train.window import Window


class Reporter:
    def __init__(self, plan: RunPlan, output_dir: str, config_yaml: str, is_main: bool) -> None:
        self.plan = plan
        self.progress = Progress()
        self.clock = Clock()
        self.screen = Screen(enabled=is_main)
        self.folder: RunFolder | None = None
        self._journal: Journal | None = None
        self._last_step, self._last_samples = 0, 0
        if is_main:
            self._open(output_dir, config_yaml)

    def _open(self, output_dir: str, config_yaml: str) -> None:
        self.folder, moved = RunFolder.create(output_dir, self.plan.name)
        if moved:
            self.screen.say(f"an earlier run of this name is now in {moved}")
        self.folder.write_text("config.yaml", config_yaml)
        self.folder.write_json("plan.json", self.plan.as_dict())
        self._journal = Journal(self.folder.path / "metrics.jsonl")
        self.screen.say(*self.plan.lines(), f"outputs   {self.folder.path}")

    def train_row(self, numbers: Mapping[str, float], window: Window) -> None:
        """A row about the step just taken; `numbers`: what the loop measured of it."""
        progress = self.progress
        seconds = self.clock.lap()
        row = {
            names.GLOBAL_STEP: progress.step,
            names.EPOCH: progress.epoch,
            **numbers,
            names.EMPTY_STEPS: progress.empty_steps,
            names.SAMPLES_SEEN: progress.samples_seen,
            names.HOURS: self.clock.hours,
            names.EFFECTIVE_SIZE: window.samples,
            names.MICRO_SIZE: max(m.samples for m in window.micro_batches),
            names.ACCUMULATION_STEPS: len(window.micro_batches),
            names.WORLD_SIZE: self.plan.batch.world_size,
            names.SAMPLES_PER_SECOND: (progress.samples_seen - self._last_samples) / seconds,
            names.STEP_SECONDS: seconds / (progress.step - self._last_step),
        }
        self._last_step, self._last_samples = progress.step, progress.samples_seen
        self._write(row)

    def eval_row(self, metrics: Mapping[str, float]) -> None:
        row = {names.GLOBAL_STEP: self.progress.step, names.SAMPLES_SEEN: self.progress.samples_seen}
        self._write(row | {names.EVAL + name: value for name, value in metrics.items()})

    def _write(self, row: Mapping[str, float]) -> None:
        if self._journal:
            self._journal.write(row)
        self.screen.row(row, self.plan.total_steps)

    def end(self, reason: str, code: int) -> None:
        """Close everything; ended.json tells why the run ended."""
        if self.folder and self._journal:
            self.folder.write_json("ended.json", ending(reason, code, self.progress.step))
            self._journal.close()
