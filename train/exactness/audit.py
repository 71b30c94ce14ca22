"""The audit: on a few steps of a run, the gradient of that very step once more, cut another way.

The story of one audit, between a step's gradient and its update:

1. When: at steps 1, 10, 100 and every batch.audit_every_steps        (audit_schedule.py)
2. The state of model and task is captured before and after the step  (hidden_state.py)
3. Can it be repeated? Random draws and uncopied state are obstacles  (audit_obstacles.py)
4. The step's gradient is set aside, the state rewound                (extra_gradient.py)
5. The gradient is recomputed from smaller, shuffled micro-batches    (audit_cut.py)
6. Both are compared, within what the arithmetic explains             (audit_compare.py)
7. A difference is diagnosed: rounding, the model or the machine?     (audit_diagnosis.py)
8. The verdict becomes a row, a line on the screen or a warning       (audit_verdict.py)

It leaves no trace: gradient, buffers, attributes and generators are put back, and nothing of it is
in a checkpoint.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from train import metric_names
from train.batch.window import Window
from train.config import Config
from train.data import TrainingSet
from train.distributed.ranks import Ranks
from train.errors import RunFailed
from train.exactness.audit_compare import compare
from train.exactness.audit_cut import samples_of
from train.exactness.audit_obstacles import find_obstacle
from train.exactness.audit_schedule import describe_schedule, next_audit
from train.exactness.audit_verdict import Kind, NotComparable, Verdict
from train.exactness.audited_step import AuditedStep
from train.exactness.captured_state import State
from train.exactness.extra_gradient import current_gradients, gradients_set_aside
from train.exactness.hidden_state import capture_all
from train.exactness.preflight import Preflight
from train.parts import Apart, Part
from train.plan.run_plan import RunPlan
from train.randomness import Generators, seed_of_rank, seed_of_step
from train.step import ComputeGradient, Learner


class NotVerified(RunFailed):
    """batch.exact=required, and an audit found another gradient than that of the full batch."""


class Report(Protocol):
    @property
    def progress(self) -> "Progress": ...

    @property
    def clock(self) -> "Clock": ...

    def say(self, line: str) -> None: ...

    def warn(self, title: str, text: str) -> None: ...

    def audit_row(self, window: Window, numbers: dict[str, float]) -> None: ...


class Progress(Protocol):
    step: int


class Clock(Protocol):
    def paused(self) -> AbstractContextManager[None]: ...


def part(
    learner: Learner,
    config: Config,
    preflight: Preflight,
    plan: RunPlan,
    ranks: Ranks,
    report: Report,
    unmeasured: Apart,
) -> Part:
    every_steps = config.batch.audit_every_steps
    if not every_steps:
        return Part(name="audit")
    # A run that is known to be inexact would fail every audit, at the cost of a gradient each.
    if preflight.exactness.beyond_rounding:
        report.say("audit     none: that the gradient is not exact is known already")
        return Part(name="audit")
    report.say(describe_schedule(every_steps, plan.total_steps))
    # The row's throughput leaves out what audits take.
    unmeasured.add(lambda: report.clock.paused())
    audit = Audit(
        config=config,
        data=preflight.reading.samples,
        ranks=ranks,
        report=report,
        unmeasured=unmeasured,
        generators=Generators(learner.device),
    )
    return Part(name="audit", gradient=audit.around)


class Audit:
    """Audits the steps of one rank; all ranks audit the same steps together."""

    def __init__(
        self,
        *,
        config: Config,
        data: TrainingSet,
        ranks: Ranks,
        report: Report,
        unmeasured: Apart,
        generators: Generators,
    ) -> None:
        self._config = config
        self._every_steps = config.batch.audit_every_steps
        self._data = data
        self._ranks = ranks
        self._report = report
        self._unmeasured = unmeasured
        self._generators = generators
        self._seed_of_rank = seed_of_rank(config.seed, ranks.rank)
        self._largest_norm = 0.0  # of the gradients that were audited
        self._verified_step: int | None = None
        self._shown: set[str] = set()
        self._next_step = next_audit(report.progress.step + 1, self._every_steps)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, whose gradient is audited where that is due."""

        def audited(learner: Learner, window: Window) -> Tensor:
            # By the number of the step alone: nothing of an audit is in a checkpoint, so the same
            # steps are audited after a resume.
            if window.k < self._next_step:
                return compute_gradient(learner, window)
            # The second gradient has to start from here, which nobody knows afterwards.
            with self._outside_of_step(learner):
                before = _captured(learner)
            losses = compute_gradient(learner, window)
            # Before the update: the weights are still those that the gradient was computed with.
            with self._outside_of_step(learner):
                self._audit(learner, window, before)
            return losses

        return audited

    @contextmanager
    def _outside_of_step(self, learner: Learner) -> Iterator[None]:
        """What runs inside counts neither in the step's time nor in its memory."""
        # The device is behind the host: what the step began must end before the clocks stop.
        _synchronize(learner.device)
        with self._unmeasured():
            yield
            _synchronize(learner.device)

    def _audit(self, learner: Learner, window: Window, before: State) -> None:
        start = time.perf_counter()
        # After the reduction it is the same on every rank: all of them leave here, or none.
        norm = float(learner.parallel.norms(current_gradients(learner)).norm())
        if not isfinite(norm):
            # Nothing to compare: this step is skipped by the update, and the next one is audited.
            self._next_step = window.k + 1
            return
        self._next_step = next_audit(window.k + 1, self._every_steps)
        self._largest_norm = max(self._largest_norm, norm)
        after = _captured(learner)
        # A step that cannot be audited is no failure: training continues, as does the schedule.
        try:
            verdict = self._verdict(learner, window, before, after)
        except NotComparable as reason:
            self._show_once(window, str(reason))
            return
        self._report_verdict(window, verdict, time.perf_counter() - start)

    def _verdict(self, learner: Learner, window: Window, before: State, after: State) -> Verdict:
        """Raises NotComparable, on all ranks."""
        # The seed that the step itself began with (gradients/seeding.py): the same draws are made
        # again.
        seed = seed_of_step(self._seed_of_rank, window.k)
        # Of any rank: one that could not take part would leave the others in a collective.
        obstacles = self._ranks.gather(
            find_obstacle(learner, before, after, self._generators, seed)
        )
        for obstacle in obstacles:
            if obstacle:
                raise NotComparable(obstacle)

        def rewind() -> None:
            """Back to where the step began: its own draws and state are part of its gradient."""
            # Up to ten gradients without a step: the watchdog must not take them for a hang.
            self._ranks.pulse.beat()
            before.restore()
            self._generators.seed(seed)

        with self._generators.kept(), gradients_set_aside(learner) as step_gradient:
            try:
                samples = samples_of(window, self._data, self._ranks)
                step = AuditedStep(
                    learner=learner,
                    config=self._config,
                    window=window,
                    samples=samples,
                    other_cut=samples.other_cut(window),
                    ranks=self._ranks,
                    generators=self._generators,
                    rewind=rewind,
                    gradient=step_gradient,
                    changed_state=after.changed_since(before, 0.0),
                    largest_norm=self._largest_norm,
                )
                return compare(step)
            finally:
                # Training continues from the state that the step itself left behind.
                after.restore()

    def _show_once(self, window: Window, reason: str) -> None:
        # The same obstacle comes at each audit.
        if reason not in self._shown:
            self._shown.add(reason)
            self._report.say(f"audit     step {window.k:,} could not be audited: {reason}")

    def _report_verdict(self, window: Window, verdict: Verdict, seconds: float) -> None:
        is_verified = verdict.kind is Kind.VERIFIED
        if is_verified:
            self._verified_step = window.k
        numbers = {
            metric_names.SPLIT_ERROR: verdict.error,
            metric_names.VERIFIED: float(is_verified),
            metric_names.AUDIT_SECONDS: seconds,
        }
        # In each row: the last row of a run then says when it was last verified.
        if self._verified_step is not None:
            numbers[metric_names.VERIFIED_STEP] = self._verified_step
        self._report.audit_row(window, numbers)
        if is_verified:
            return
        message = verdict.message(window.k)
        if not verdict.has_failed:
            self._report.say(f"audit     {message}")
            return
        self._report.warn("an audit has failed", message)
        # After the row and the warning: what was found is written down when the run ends.
        if self._config.batch.exact == "required":
            raise NotVerified(f"batch.exact=required, and {message}. No update was made")


def _captured(learner: Learner) -> State:
    try:
        return capture_all(learner.module, learner.task)
    except Exception:
        # The user's objects may raise anything when they are copied. A training that works must not
        # end by that: a partial state is an obstacle, and the step is not audited.
        return State(is_partial=True)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
