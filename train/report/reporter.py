"""Joins what is told of a run. Every rank has a Reporter; only rank 0's has anybody to tell."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from train import names
from train.report.best import Best
from train.report.ending import FINISHED, ending, tell
from train.report.folder import RunFolder
from train.report.journal import Journal
from train.report.plan import RunPlan
from train.report.progress import Clock, Progress, duration
from train.report.redact import redact
from train.report.screen import Screen
from train.window import Place, Window


class Sink(Protocol):
    def log(self, row: Mapping[str, float]) -> None: ...
    def finish(self, exit_code: int) -> None: ...


@dataclass
class Reporter:
    plan: RunPlan
    best: Best
    sinks: Sequence[Sink] = ()  # none but on rank 0
    journal: Journal | None = None  # on rank 0, one of them
    folder: RunFolder | None = None  # on rank 0
    screen: Screen | None = None  # on rank 0
    secrets: Collection[str] = ()  # texts that must not be told
    next_line: str = ""  # what to type after a run that has finished
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    run_id: str | None = None  # in W&B
    last_save_seconds: float | None = None
    _last_step: int = 0
    _last_samples: int = 0

    def begin(self) -> None:
        """Training begins now: what came before is not its time."""
        self.clock = Clock(self.clock.seconds)
        self._last_step, self._last_samples = self.progress.step, self.progress.samples_seen

    def state_dict(self) -> dict[str, Any]:
        """All that the rows after a resume depend on."""
        best = {"value": self.best.value, "step": self.best.step, "last": self.best.last}
        return {
            "progress": asdict(self.progress),
            "seconds": self.clock.seconds,
            "best": {self.best.metric: best},
            "run_id": self.run_id,
            "last_save_seconds": self.last_save_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        progress = dict(state["progress"])
        self.progress = Progress(**progress | {"place": Place(**progress["place"])})
        self.clock = Clock(state["seconds"])
        for name, value in state["best"].get(self.best.metric, {}).items():  # of another metric nothing is known yet
            setattr(self.best, name, value)
        self.run_id, self.last_save_seconds = state["run_id"], state["last_save_seconds"]

    def train_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """A row about the step just taken; `numbers`: what was measured of it."""
        progress, seconds = self.progress, self.clock.lap()
        row = {
            names.GLOBAL_STEP: progress.step,
            names.EPOCH: progress.epoch,
            names.SAMPLES_SEEN: progress.samples_seen,
            names.HOURS: self.clock.seconds / 3600,
            names.EMPTY_STEPS: progress.empty_steps,
            names.EFFECTIVE_SIZE: window.samples,
            names.MICRO_SIZE: max(micro_batch.samples for micro_batch in window.micro_batches),
            names.ACCUMULATION_STEPS: len(window.micro_batches),
            names.WORLD_SIZE: self.plan.batch.world_size,
            names.SAMPLES_PER_SECOND: (progress.samples_seen - self._last_samples) / seconds,
            names.STEP_SECONDS: seconds / (progress.step - self._last_step),
            **numbers,
        }
        self._last_step, self._last_samples = progress.step, progress.samples_seen
        self._write(row)

    def eval_row(self, metrics: Mapping[str, float]) -> None:
        place = {names.GLOBAL_STEP: self.progress.step, names.SAMPLES_SEEN: self.progress.samples_seen}
        row = place | {names.EVAL + name: value for name, value in metrics.items()}
        self.best.see(row)
        if self.screen:
            self.screen.best(self.best.short)
        self._write(row)

    def sync(self) -> None:
        """All rows so far are on disk: no checkpoint must know of a step that metrics.jsonl does not."""
        if self.journal:
            self.journal.sync()

    def save_row(self, seconds: float) -> None:
        """What the save just made has cost: training stood still for so long."""
        self.last_save_seconds = seconds
        progress = self.progress
        row = {names.GLOBAL_STEP: progress.step, names.SAMPLES_SEEN: progress.samples_seen, names.SAVE_SECONDS: seconds}
        self._write(row)

    def close(self, reason: str, code: int) -> None:
        """The end, for people and for the launcher; every sink is closed even where another fails."""
        if self.folder is None:
            return
        try:
            self._close(self.folder, redact(reason, self.secrets), code)  # it may hold the text of any exception
        except OSError as error:  # a full disk must not hide why the run ended
            tell(f"could not write the end of the run into {self.folder.path}: {error}")

    def _close(self, folder: RunFolder, reason: str, code: int) -> None:
        with ExitStack() as stack:
            stack.callback(folder.release)
            for sink in self.sinks:
                stack.callback(sink.finish, code)
            folder.write_json("ended.json", ending(reason, code, self.progress.step))
            if self.screen:
                self.screen.end(*self._closing_lines(reason, code))

    def _closing_lines(self, reason: str, code: int) -> list[str]:
        step, total = self.progress.step, self.plan.total_steps
        steps = f"{total:,} steps" if step == total else f"step {step:,} of {total:,}"
        line = f"{reason}: {steps} in {duration(self.clock.seconds)}"
        if str(self.best):
            line += f"; {self.best}"
        return [line, self.next_line] if code == FINISHED and self.next_line else [line]

    def _write(self, row: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.log(row)
