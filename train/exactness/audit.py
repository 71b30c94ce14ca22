"""The audit: on a few steps of a run, the gradient of that very step once more, cut another way.

Before the update, in the live state: other micro-batches (none of more samples than the step's
own), another order, on several ranks each other's samples. Above what the arithmetic explains it is
asked why (audit_compare.py). It leaves no trace: gradient, buffers, attributes and generators are
put back, and nothing of it is in a checkpoint.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from train import metric_names
from train.batch.window import Window
from train.config import Config
from train.data import TrainingSet
from train.distributed.ranks import Ranks
from train.errors import RunFailed, some
from train.exactness.audit_compare import Comparison
from train.exactness.audit_draws import has_drawn, may_draw
from train.exactness.audit_verdict import VERIFIED, Unable, Verdict
from train.exactness.extra_gradient import gradients, put_aside
from train.exactness.hidden_state import capture_all
from train.exactness.preflight import Preflight
from train.exactness.state import State, generators_of
from train.parts import Apart, Part
from train.plan.run_plan import RunPlan
from train.randomness import Generators, seed_of_rank, seed_of_step
from train.step import ComputeGradient, Learner

FIRST = (1, 10, 100)
"""The steps of the first audits."""

NEVER = 2**62


class NotVerified(RunFailed):
    """batch.exact=required, and an audit has found a gradient that is not that of the one big
    batch.
    """


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
    tried: Preflight,
    plan: RunPlan,
    ranks: Ranks,
    report: Report,
    apart: Apart,
) -> Part:
    """`tried`: what is trained on, and what was found out about it before the first step."""
    every_steps = config.batch.audit_every_steps
    if not every_steps:
        return Part(name="audit")
    if tried.exactness.beyond_rounding:
        report.say("audit     none: that the gradient is not exact is known already")
        return Part(name="audit")
    report.say(planned(every_steps, plan.total_steps))
    apart.add(lambda: report.clock.paused())
    audit = Audit(config, tried.reading.samples, ranks, report, apart, Generators(learner.device))
    return Part(name="audit", gradient=audit.around)


def planned(every_steps: int, total_steps: int) -> str:
    """For the screen: which steps, and how many of all."""
    early = [step for step in FIRST if step <= total_steps and step % every_steps]
    steps = f"at steps {', '.join(map(str, early))}" if early else ""
    count = len(early) + total_steps // every_steps
    regular = f"every {every_steps:,} steps" if every_steps <= total_steps else ""
    when = " and ".join(filter(None, [steps, regular]))
    return (
        f"audit     {when}: a second gradient, cut another way, in {count:,} of {total_steps:,} "
        "steps"
    )


def next_audit(step: int, every_steps: int) -> int:
    """The first step from `step` on that is audited."""
    regular = -(-step // every_steps) * every_steps
    return min([k for k in FIRST if k >= step] + [regular])


class Audit:
    """Of one rank; all ranks audit the same steps together."""

    def __init__(
        self,
        config: Config,
        data: TrainingSet,
        ranks: Ranks,
        report: Report,
        apart: Apart,
        generators: Generators,
    ) -> None:
        self._config = config
        self._every_steps = config.batch.audit_every_steps
        self._data = data
        self._ranks = ranks
        self._report = report
        self._apart = apart
        self._generators = generators
        self._first_seed = seed_of_rank(config.seed, ranks.rank)
        self._largest = 0.0  # norm of a gradient that was audited
        self._verified_step: int | None = None
        self._said: set[str] = set()
        self._due = next_audit(report.progress.step + 1, self._every_steps)

    def around(self, compute_gradient: ComputeGradient) -> ComputeGradient:
        """The same function, whose gradient is audited where that is due."""

        def audited(learner: Learner, window: Window) -> Tensor:
            if window.k < self._due:
                return compute_gradient(learner, window)
            with self._beside(learner):
                before = _captured(learner)
            losses = compute_gradient(learner, window)
            with self._beside(learner):
                self._look(learner, window, before)
            return losses

        return audited

    @contextmanager
    def _beside(self, learner: Learner) -> Iterator[None]:
        """What takes place inside is none of the step's: neither its time nor its memory."""
        _wait(learner.device)  # for what the step has begun
        with self._apart():
            yield
            _wait(learner.device)

    def _look(self, learner: Learner, window: Window, before: State) -> None:
        start = time.perf_counter()
        self._due = window.k + 1  # where this one is not finite
        size = float(learner.parallel.norms(gradients(learner)).norm())
        if size == size and size != float("inf"):
            self._due = next_audit(window.k + 1, self._every_steps)
            self._largest = max(self._largest, size)
            after = _captured(learner)
            verdict = self._verdict(learner, window, before, after)
            if verdict is not None:
                self._report_it(window, verdict, time.perf_counter() - start)

    def _verdict(
        self, learner: Learner, window: Window, before: State, after: State
    ) -> Verdict | None:
        """None where there can be none, which is said once."""
        seed = seed_of_step(self._first_seed, window.k)
        obstacles = self._ranks.gather(self._obstacle(learner, before, after, seed))
        obstacle = next(filter(None, obstacles), "")
        if obstacle:
            self._say_once(window, obstacle)
            return None

        def begin() -> None:
            self._ranks.pulse.beat()
            before.restore()
            self._generators.seed(seed)

        changed = after.changed_since(before, 0.0)
        with self._generators.kept(), put_aside(learner) as kept:
            try:
                comparison = Comparison(
                    learner=learner,
                    config=self._config,
                    window=window,
                    data=self._data,
                    ranks=self._ranks,
                    generators=self._generators,
                    begin=begin,
                    kept=kept,
                    changed=changed,
                    largest=self._largest,
                )
                return comparison.verdict()
            except Unable as error:
                self._say_once(window, str(error))
                return None
            finally:
                after.restore()

    def _obstacle(self, learner: Learner, before: State, after: State, seed: int) -> str:
        """Why another cut would say nothing, or would leave a trace; empty where it may
        be tried.
        """
        if before.is_partial or after.is_partial:
            return "declared: model and task hold more than can be copied and put back"
        try:
            after.restore()  # changes nothing, and shows that it can be done
        except Exception as error:  # of the user's objects
            return (
                f"declared: what model and task hold cannot be put back ({type(error).__name__}: "
                f"{error})"
            )
        drawn = [] if may_draw(learner) else has_drawn(self._generators, seed)
        changed = after.changed_since(before, 0.0)
        drawn += generators_of(changed)
        if drawn:
            return (
                f"it draws random numbers ({', '.join(drawn)}), and would draw others for other "
                "micro-batches"
            )
        fixed = [name for name in changed if name in before.uncopied]
        if fixed:
            return f"declared: {some(fixed)} changes while it is computed, and cannot be put back"
        return ""

    def _say_once(self, window: Window, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            self._report.say(f"audit     step {window.k:,} could not be audited: {why}")

    def _report_it(self, window: Window, verdict: Verdict, seconds: float) -> None:
        is_verified = verdict.kind == VERIFIED
        if is_verified:
            self._verified_step = window.k
        numbers = {
            metric_names.SPLIT_ERROR: verdict.error,
            metric_names.VERIFIED: float(is_verified),
            metric_names.AUDIT_SECONDS: seconds,
        }
        if self._verified_step is not None:
            numbers[metric_names.VERIFIED_STEP] = self._verified_step
        self._report.audit_row(window, numbers)
        if is_verified:
            return
        text = verdict.sentence(window.k)
        if verdict.has_failed:
            self._report.warn("an audit has failed", text)
        else:
            self._report.say(f"audit     {text}")
        if verdict.has_failed and self._config.batch.exact == "required":
            raise NotVerified(f"batch.exact=required, and {text}. No update was made")


def _captured(learner: Learner) -> State:
    """Without anything, where something cannot be looked into: such a model is not audited."""
    try:
        return capture_all(learner.module, learner.task)
    except Exception:  # the user's objects may do anything when they are copied
        return State(is_partial=True)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
