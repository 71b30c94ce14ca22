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
        """`stop` asks all ranks for a stop, and says why; what fails inside `kept()` ends all ranks
        before a step.
        """
        self.progress: Progress = state.progress
        self._plan = plan
        self._state = state
        self._outlets = outlets
        self._stop = stop
        self._kept = kept
        self._first_step = 0  # of this start
        self._last_step = 0
        self._last_samples = 0
        self._last_tokens = 0
        self._batch_seconds = 0.0  # the longest of an evaluation
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
        self._last_step = self.progress.step
        self._last_samples = self.progress.samples_seen
        self._last_tokens = self.progress.tokens_seen
        self._first_step = self.progress.step + 1

    def train_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """A row about the step just taken; `numbers`: what was measured of it."""
        progress = self.progress
        seconds = self.clock.lap()
        row = self._position() | {
            metric_names.EPOCH: progress.epoch,
            metric_names.HOURS: self.clock.seconds / 3600,
            metric_names.EMPTY_STEPS: progress.empty_steps,
            metric_names.EFFECTIVE_SIZE: window.samples,
            metric_names.MICRO_SIZE: max(window.micro_batches.sizes),
            metric_names.ACCUMULATION_STEPS: len(window.micro_batches),
            metric_names.WORLD_SIZE: self._plan.batch.world_size,
            metric_names.SAMPLES_PER_SECOND: (progress.samples_seen - self._last_samples) / seconds,
            metric_names.STEP_SECONDS: seconds / (progress.step - self._last_step),
            **numbers,
        }
        if window.tokens is not None:
            row |= {
                metric_names.EFFECTIVE_TOKENS: window.tokens,
                metric_names.TOKENS_PER_SECOND: (progress.tokens_seen - self._last_tokens)
                / seconds,
            }
        self._last_tokens = progress.tokens_seen
        self._last_step = progress.step
        self._last_samples = progress.samples_seen
        self._write(row)
        self._attempt(partial(self._alert_once, numbers[metric_names.SKIPPED_STEPS]))
        if progress.step > self._first_step:  # the first one compiles, and warms up
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
        warning = slow_stop(step_seconds, self._state.last_save_seconds or 0.0, self._batch_seconds)
        if warning:
            self._warned_of_slow_stop = True
            self._outlets.screen.say(warning)

    def _position(self) -> dict[str, float]:
        progress = self.progress
        position: dict[str, float] = {
            metric_names.GLOBAL_STEP: progress.step,
            metric_names.SAMPLES_SEEN: progress.samples_seen,
        }
        if progress.tokens_per_sample:
            position[metric_names.TOKENS_SEEN] = progress.tokens_seen
        return position

    def show(self, table: Table) -> None:
        """What the model wrote."""
        if self._outlets is not None:
            self._attempt(partial(self._outlets.tables.show, self._position(), table))

    def say(self, line: str) -> None:
        """On the screen, and in log.txt."""
        if self._outlets is not None:
            self._attempt(partial(self._outlets.screen.say, line))

    def eval_batch(self, seconds: float) -> None:
        self._batch_seconds = max(self._batch_seconds, seconds)

    def eval_row(self, metrics: Mapping[str, float]) -> None:
        # Of training alone: the clock stands still meanwhile.
        position = self._position() | {metric_names.HOURS: self.clock.seconds_so_far / 3600}
        row = position | {metric_names.EVAL + name: value for name, value in metrics.items()}
        self.best.see(row)
        if self._outlets is not None:
            self._attempt(partial(self._outlets.screen.best, self.best.short))
        self._write(row)
        self._attempt(partial(self._warn_of_slow_stop, 0.0))

    def sync(self) -> None:
        """All rows so far are on disk: no checkpoint must know of a step that metrics.jsonl does
        not.
        """
        if self._outlets is not None:
            self._outlets.journal.sync()

    def save_row(self, seconds: float) -> None:
        """What the save just made has cost: training stood still for so long."""
        self._state.last_save_seconds = seconds
        position = self._position() | {metric_names.HOURS: self.clock.seconds_so_far / 3600}
        self._write(position | {metric_names.SAVE_SECONDS: seconds})

    def audit_row(self, window: Window, numbers: Mapping[str, float]) -> None:
        """What an audit of a step has found, before its update."""
        position = self._position() | {
            metric_names.GLOBAL_STEP: window.k,
            metric_names.SAMPLES_SEEN: window.seen + window.samples,
            metric_names.HOURS: self.clock.seconds_so_far / 3600,
        }
        if window.tokens is not None:
            position[metric_names.TOKENS_SEEN] = self.progress.tokens_seen + window.tokens
        self._write({**position, **numbers})

    def close(
        self, reason: str, code: int, closing_lines: Callable[[], Sequence[str]] = tuple
    ) -> None:
        """The end, for people and for the launcher; every sink is closed even where another fails.

        `closing_lines` gives what else there is to say, empty lines for nothing.
        """
        if self._outlets is None:
            return
        reason = clean(reason)  # it may hold the text of any exception
        tracker = self._outlets.tracker
        if code in (BAD_CONFIG, FAILED):
            text = f"at step {self.progress.step:,}: {reason}"
            tracker.alert(f"{self._plan.name[:50]} failed", text, "ERROR")
        tracker.summarise(self._end(reason, code))
        try:
            self._close(self._outlets, reason, code, closing_lines)
        except OSError as error:  # a full disk must not hide why the run ended
            folder = self._outlets.folder.path
            print_error(f"could not write the end of the run into {folder}: {error}")

    def _close(
        self, outlets: Outlets, reason: str, code: int, closing_lines: Callable[[], Sequence[str]]
    ) -> None:
        with ExitStack() as stack:
            stack.callback(outlets.folder.release)
            for sink in outlets.sinks:
                stack.callback(sink.finish, code)
            outlets.folder.write_json("ended.json", ending(reason, code, self.progress.step))
            lines = [self._last_line(reason), *closing_lines()]
            if code == FINISHED:
                lines += [outlets.finished(), outlets.next_line]
            outlets.screen.end(*filter(None, lines))

    def _end(self, reason: str, code: int) -> dict[str, float | str]:
        ended: dict[str, float | str] = {"reason": reason, "code": code, "step": self.progress.step}
        return {metric_names.ENDED + name: value for name, value in ended.items()}

    def _last_line(self, reason: str) -> str:
        step = self.progress.step
        total = self._plan.total_steps
        steps = f"{total:,} steps" if step == total else f"step {step:,} of {total:,}"
        first_line = reason.partition("\n")[0]  # the rest is to type, and is printed last
        line = f"{first_line}: {steps} in {duration(self.clock.seconds_so_far)}"
        return f"{line}; {self.best}" if str(self.best) else line

    def _write(self, row: Mapping[str, float]) -> None:
        if self._outlets is not None:
            self._attempt(self._outlets.folder.inside)
            for sink in self._outlets.sinks:
                self._attempt(partial(sink.log, row))

    def _attempt(self, write: Callable[[], object]) -> None:
        """A full disk ends the run as any other stop does: saved, or not, by all ranks together. So
        does what fails.
        """
        with self._kept():
            try:
                write()
            except OSError as error:
                self._stop(f"what could not be written: {error}")
