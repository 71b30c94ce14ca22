"""Joins what is told of a run. Every rank has a Reporter; only rank 0's has anybody to tell."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from train import names
from train.report.best import Best
from train.report.ending import BAD_CONFIG, FAILED, FINISHED, ending, tell
from train.report.folder import RunFolder
from train.report.grace import slow_stop
from train.report.journal import Journal
from train.report.plan import RunPlan
from train.report.progress import Clock, Progress, duration
from train.report.redact import redact
from train.report.screen import Screen
from train.report.tables import Table, Tables
from train.report.tracker import Tracker
from train.window import Window


class Sink(Protocol):
    def log(self, row: Mapping[str, float]) -> None: ...
    def finish(self, exit_code: int) -> None: ...


@dataclass
class Reporter:
    plan: RunPlan
    best: Best
    stop: Callable[[str], None]  # asks all ranks for a stop, and says why
    sinks: Sequence[Sink] = ()  # none but on rank 0
    journal: Journal | None = None  # on rank 0, one of them
    folder: RunFolder | None = None  # on rank 0
    screen: Screen | None = None  # on rank 0
    tracker: Tracker = field(default_factory=Tracker)  # without a run, but on rank 0
    secrets: Collection[str] = ()  # texts that must not be told
    tables: Tables | None = None  # on rank 0
    next_line: str = ""  # what to type after a run that has finished
    finished: Callable[[], str] = str  # what else such a run does; gives a line for the end, or nothing
    learnt: Sequence[Callable[[], str]] = ()  # each gives a line for the end, or nothing
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    run_id: str | None = None  # in W&B
    last_save_seconds: float | None = None
    _first_step: int = 0  # of this start
    _last_step: int = 0
    _last_samples: int = 0
    _alerted: bool = False
    _slow_stop: bool = False

    def __post_init__(self) -> None:
        self.progress.tokens_per_sample = self.plan.tokens_per_sample

    def begin(self) -> None:
        """Training begins now: what came before is not its time."""
        self.clock = Clock(self.clock.seconds)
        self._last_step, self._last_samples = self.progress.step, self.progress.samples_seen
        self._first_step = self.progress.step + 1

    def state_dict(self) -> dict[str, Any]:
        """All that the rows after a resume depend on."""
        best = {"value": self.best.value, "step": self.best.step, "last": self.best.last}
        return {
            "progress": asdict(self.progress),
            "seconds": self.clock.seconds_so_far,
            "best": {self.best.metric: best},
            "run_id": self.run_id,
            "last_save_seconds": self.last_save_seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = Progress(**state["progress"])
        self.progress.tokens_per_sample = self.plan.tokens_per_sample  # the config's, not the checkpoint's
        self.clock = Clock(state["seconds"])
        for name, value in state["best"].get(self.best.metric, {}).items():  # of another metric nothing is known yet
            setattr(self.best, name, value)
        self.run_id, self.last_save_seconds = state["run_id"], state["last_save_seconds"]

    def train_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """A row about the step just taken; `numbers`: what was measured of it."""
        progress, seconds = self.progress, self.clock.lap()
        row = self._place() | {
            names.EPOCH: progress.epoch,
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
        if tokens := progress.tokens_per_sample:
            row |= {
                names.EFFECTIVE_TOKENS: window.samples * tokens,
                names.TOKENS_PER_SECOND: row[names.SAMPLES_PER_SECOND] * tokens,
            }
        self._last_step, self._last_samples = progress.step, progress.samples_seen
        if numbers[names.SKIPPED_STEPS] and not self._alerted:  # once: a run may skip now and then for days
            self._alerted = True
            self.tracker.alert("a gradient was not finite", self._skipped(numbers[names.SKIPPED_STEPS]))
        self._write(row)
        if self.screen and progress.step > self._first_step:  # which compiles, and warms up
            self.screen.say(*self.slow_stop(row[names.STEP_SECONDS]))

    def slow_stop(self, step_seconds: float = 0.0) -> list[str]:
        """A warning, once, where a stop takes longer than it is left; before a step was measured, from a save alone."""
        told = "" if self._slow_stop else slow_stop(step_seconds, self.last_save_seconds or 0.0)
        self._slow_stop = self._slow_stop or bool(told)
        return [told] if told else []

    def _place(self) -> dict[str, float]:
        progress = self.progress
        place: dict[str, float] = {names.GLOBAL_STEP: progress.step, names.SAMPLES_SEEN: progress.samples_seen}
        tokens = progress.samples_seen * progress.tokens_per_sample
        return place | ({names.TOKENS_SEEN: tokens} if progress.tokens_per_sample else {})

    def show(self, table: Table) -> None:
        """What the model wrote."""
        if self.tables:
            self._tell(partial(self.tables.show, self._place(), table))

    def eval_row(self, metrics: Mapping[str, float]) -> None:
        # of training alone: the clock stands still meanwhile
        place = self._place() | {names.HOURS: self.clock.seconds_so_far / 3600}
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
        place = self._place() | {names.HOURS: self.clock.seconds_so_far / 3600}
        self._write(place | {names.SAVE_SECONDS: seconds})

    def close(self, reason: str, code: int) -> None:
        """The end, for people and for the launcher; every sink is closed even where another fails."""
        if self.folder is None:
            return
        reason = redact(reason, self.secrets)  # it may hold the text of any exception
        if code in (BAD_CONFIG, FAILED):
            self.tracker.alert(f"{self.plan.name} failed", f"at step {self.progress.step:,}: {reason}")
        self.tracker.summarise(self._summary(reason, code))
        try:
            self._close(self.folder, reason, code)
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

    def _skipped(self, steps: float) -> str:
        return f"{self.plan.name}: by step {self.progress.step:,}, {steps:.0f} steps were not applied"

    def _summary(self, reason: str, code: int) -> dict[str, float | str]:
        best: dict[str, float | str] = {}
        if self.best.value is not None:
            best = {f"best/{self.best.metric.removeprefix(names.EVAL)}": self.best.value, "best/step": self.best.step}
        return {"ended/reason": reason, "ended/code": code, "ended/step": self.progress.step, **best}

    def _closing_lines(self, reason: str, code: int) -> list[str]:
        step, total = self.progress.step, self.plan.total_steps
        steps = f"{total:,} steps" if step == total else f"step {step:,} of {total:,}"
        line = f"{reason}: {steps} in {duration(self.clock.seconds_so_far)}"
        if str(self.best):
            line += f"; {self.best}"
        more = [tell() for tell in self.learnt]
        if code == FINISHED:
            more += [self.finished(), self.next_line]
        return [line, *filter(None, more)]

    def _write(self, row: Mapping[str, float]) -> None:
        for sink in self.sinks:
            self._tell(partial(sink.log, row))

    def _tell(self, say: Callable[[], None]) -> None:
        """A full disk ends the run as any other stop does: saved, or not, by all ranks together."""
        try:
            say()
        except OSError as error:
            self.stop(f"what could not be written: {error}")
