"""What is reported of a run, row by row. Every rank has a Reporter; only rank 0's has outlets."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from train import metric_names
from train.batch.window import Window
from train.errors import BAD_CONFIG, FAILED, FINISHED, ending, print_error
from train.parts import Kept
from train.plan.run_plan import RunPlan
from train.redaction import clean
from train.report.best import Best
from train.report.grace import slow_stop
from train.report.outlets import Outlets
from train.report.progress import Clock, Progress, duration
from train.report.state import RunState
from train.report.tables import Table

LONGEST_NAME = 50
"""Of a run, in the title of an alert."""


class Reporter:
    """Joins what is measured into rows, and hands them to the outlets."""

    def __init__(
        self,
        plan: RunPlan,
        state: RunState,
        outlets: Outlets | None,
        stop: Callable[[str], None],
        kept: Kept,
    ) -> None:
        """`stop(reason)` asks all ranks for a stop. What fails inside `kept()` ends all ranks
        before a step.
        """
        self.progress: Progress = state.progress
        self._plan = plan
        self._state = state
        self._outlets = outlets
        self._stop = stop
        self._kept = kept
        self._first_step = 0
        """Of this start."""
        # As of the last row.
        self._last_step = 0
        self._last_samples = 0
        self._last_tokens = 0
        self._longest_batch_seconds = 0.0
        """Of an evaluation."""
        self._alerted = False
        self._warned_of_slow_stop = outlets is not None and outlets.warned_of_slow_stop

    @property
    def clock(self) -> Clock:
        return self._state.clock

    @property
    def best(self) -> Best:
        return self._state.best

    def begin(self) -> None:
        """Training begins now: what came before is not its time."""
        self._state.begin()
        self._first_step = self.progress.step + 1
        # Rows give rates since the row before; the first one of a start counts from here.
        self._remember_row()

    def _remember_row(self) -> None:
        self._last_step = self.progress.step
        self._last_samples = self.progress.samples_seen
        self._last_tokens = self.progress.tokens_seen

    def train_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """A row about the step just taken; `numbers`: what was measured of it."""
        progress = self.progress
        # One lap for a row: the seconds of all steps since the row before, evaluations and saves
        # left out.
        seconds = self.clock.lap()
        samples = progress.samples_seen - self._last_samples
        tokens = progress.tokens_seen - self._last_tokens
        step_seconds = seconds / (progress.step - self._last_step)
        row = self._position() | {
            metric_names.EPOCH: progress.epoch,
            metric_names.HOURS: self.clock.seconds / 3600,
            metric_names.EMPTY_STEPS: progress.empty_steps,
            metric_names.EFFECTIVE_SIZE: window.samples,
            metric_names.MICRO_SIZE: max(window.micro_batches.sizes),
            metric_names.ACCUMULATION_STEPS: len(window.micro_batches),
            metric_names.WORLD_SIZE: self._plan.batch.world_size,
            metric_names.SAMPLES_PER_SECOND: samples / seconds,
            metric_names.STEP_SECONDS: step_seconds,
            **numbers,
        }
        if window.tokens is not None:
            row[metric_names.EFFECTIVE_TOKENS] = window.tokens
            row[metric_names.TOKENS_PER_SECOND] = tokens / seconds
        self._remember_row()
        self._write(row)
        self._attempt(partial(self._alert_once, numbers[metric_names.SKIPPED_STEPS]))
        # Not of the first step of a start: it compiles, and warms up.
        if progress.step > self._first_step:
            self._attempt(partial(self._warn_of_slow_stop, row[metric_names.STEP_SECONDS]))

    def _alert_once(self, skipped_steps: float) -> None:
        """Once: a run may skip a step now and then for days."""
        if not skipped_steps or self._alerted or self._outlets is None:
            return
        self._alerted = True
        text = (
            f"{self._plan.name}: by step {self.progress.step:,}, {skipped_steps:.0f} steps were "
            "not applied"
        )
        self._outlets.tracker.alert("a gradient was not finite", text, "WARN")

    def warn(self, title: str, text: str) -> None:
        """On the screen, and to W&B as an alert."""
        if self._outlets is not None:
            self._attempt(partial(self._outlets.screen.say, f"warning   {text}"))
            self._outlets.tracker.alert(title, f"{self._plan.name}: {text}", "WARN")

    def _warn_of_slow_stop(self, step_seconds: float) -> None:
        """Once, where a stop takes longer than the ranks are given for it."""
        if self._warned_of_slow_stop or self._outlets is None:
            return
        save_seconds = self._state.last_save_seconds or 0.0
        warning = slow_stop(step_seconds, save_seconds, self._longest_batch_seconds)
        if warning:
            self._warned_of_slow_stop = True
            self._outlets.screen.say(warning)

    def _position(self) -> dict[str, float]:
        """What each row holds, by which W&B draws its curves."""
        progress = self.progress
        position: dict[str, float] = {
            metric_names.GLOBAL_STEP: progress.step,
            metric_names.SAMPLES_SEEN: progress.samples_seen,
        }
        if progress.tokens_per_sample:
            position[metric_names.TOKENS_SEEN] = progress.tokens_seen
        return position

    def _position_between_rows(self) -> dict[str, float]:
        """With the training time, while the clock is paused."""
        return self._position() | {metric_names.HOURS: self.clock.seconds_so_far / 3600}

    def show(self, table: Table) -> None:
        """A table of texts that the model wrote."""
        if self._outlets is not None:
            self._attempt(partial(self._outlets.tables.show, self._position(), table))

    def say(self, line: str) -> None:
        """On the screen, and in log.txt."""
        if self._outlets is not None:
            self._attempt(partial(self._outlets.screen.say, line))

    def eval_batch(self, seconds: float) -> None:
        """A batch of an evaluation has taken so long."""
        self._longest_batch_seconds = max(self._longest_batch_seconds, seconds)

    def eval_row(self, metrics: Mapping[str, float]) -> None:
        row = self._position_between_rows()
        for name, value in metrics.items():
            row[metric_names.EVAL + name] = value
        # On every rank: best/ is written by all of them together, so each must know whether it is
        # new.
        self.best.see(row)
        if self._outlets is not None:
            self._attempt(partial(self._outlets.screen.best, self.best.short))
        self._write(row)
        # Its step time is 0: only the batches of the evaluation are new.
        self._attempt(partial(self._warn_of_slow_stop, 0.0))

    def sync(self) -> None:
        """All rows so far are on disk: no checkpoint may hold a step that metrics.jsonl lacks."""
        if self._outlets is not None:
            # Where that fails the save fails, on all ranks.
            self._outlets.journal.sync()

    def save_row(self, seconds: float) -> None:
        """What the save just made has cost: training stood still for so long."""
        self._state.last_save_seconds = seconds
        self._write(self._position_between_rows() | {metric_names.SAVE_SECONDS: seconds})

    def audit_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """The result of an audit, which comes before the update: the step is not counted yet."""
        row = self._position_between_rows() | {
            metric_names.GLOBAL_STEP: window.k,
            # By the window: progress counts the step only after the update.
            metric_names.SAMPLES_SEEN: window.seen + window.samples,
        }
        if window.tokens is not None:
            row[metric_names.TOKENS_SEEN] = self.progress.tokens_seen + window.tokens
        self._write({**row, **numbers})

    def close(
        self, reason: str, code: int, closing_lines: Callable[[], Sequence[str]] = tuple
    ) -> None:
        """The end, for people and for the launcher; every sink is closed even where another fails.

        `closing_lines()` gives further lines for the screen; empty ones are left out.
        """
        if self._outlets is None:
            return
        reason = clean(reason)  # it may hold the text of any exception
        tracker = self._outlets.tracker
        if code in (BAD_CONFIG, FAILED):
            title = f"{self._plan.name[:LONGEST_NAME]} failed"
            tracker.alert(title, f"at step {self.progress.step:,}: {reason}", "ERROR")
        tracker.summarise(
            {
                f"{metric_names.ENDED}reason": reason,
                f"{metric_names.ENDED}code": code,
                f"{metric_names.ENDED}step": self.progress.step,
            }
        )
        try:
            self._close(self._outlets, reason, code, closing_lines)
        except OSError as error:  # a full disk must not hide why the run ended
            folder = self._outlets.folder.path
            print_error(f"could not write the end of the run into {folder}: {error}")

    def _close(
        self, outlets: Outlets, reason: str, code: int, closing_lines: Callable[[], Sequence[str]]
    ) -> None:
        with ExitStack() as stack:
            # Called in reverse order: the folder is released last.
            stack.callback(outlets.folder.release)
            for sink in outlets.sinks:
                stack.callback(sink.finish, code)
            # First: a launcher that loses patience with what follows must find it.
            outlets.folder.write_json("ended.json", ending(reason, code, self.progress.step))
            lines = [self._last_line(reason), *closing_lines()]
            if code == FINISHED:
                lines += [outlets.send_weights(), outlets.next_line]
            outlets.screen.end(*filter(None, lines))

    def _last_line(self, reason: str) -> str:
        step = self.progress.step
        total = self._plan.total_steps
        steps = f"{total:,} steps" if step == total else f"step {step:,} of {total:,}"
        first_line = reason.partition("\n")[0]  # the others are commands, printed after all else
        line = f"{first_line}: {steps} in {duration(self.clock.seconds_so_far)}"
        best = str(self.best)
        return f"{line}; {best}" if best else line

    def _write(self, row: Mapping[str, float]) -> None:
        if self._outlets is not None:
            # A folder that was moved or replaced is noticed at each row, and asks for a stop. The
            # sinks hold open files, or ask as well before they write by path.
            self._attempt(self._outlets.folder.inside)
            # One attempt each: a sink that fails does not keep the row from the others.
            for sink in self._outlets.sinks:
                self._attempt(partial(sink.log, row))

    def _attempt(self, write: Callable[[], object]) -> None:
        """A full disk ends the run as any other stop does: saved, or not, by all ranks together.
        Other errors are kept, and end it before the next step.
        """
        with self._kept():
            try:
                write()
            except OSError as error:
                self._stop(f"what could not be written: {error}")
