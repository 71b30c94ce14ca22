"""build(config) -> Run: all that a loop needs. The one place where features are joined on."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from train import metric_names
from train.batch.window import Window
from train.checkpoint import Checkpoints, named, newest
from train.config import Config, Loaded
from train.distributed.accelerator import check_launcher, connect
from train.distributed.ranks import Ranks
from train.distributed.stop import Stop
from train.errors import code_of, print_error
from train.evaluation import ema, generations
from train.exactness import audit
from train.exactness.preflight import preflight
from train.exactness.same_model import check_same_model
from train.gradients import late_weights, measured_shares, rank_consistency, unproven
from train.gradients.complete_step import CompleteStep
from train.gradients.seeding import seeded
from train.memory import auto_micro, peaks
from train.metrics import (
    compilations,
    loss_mean,
    loss_scale,
    mfu,
    noise_scale,
    profiler,
    scaling_regime,
    step_timing,
)
from train.metrics.largest import largest
from train.metrics.losses import mean_losses
from train.optim import stage_numbers
from train.parts import Apart, Part, Parts
from train.plan.make import prepare
from train.plan.run_plan import RunPlan
from train.plan.scaling_table import changes
from train.report import (
    Interval,
    Progress,
    Reporter,
    RunFolder,
    RunState,
    best_weights,
    checked_best,
    claim,
)
from train.report.displaced import save_in_own
from train.report.run_weights import RunWeights
from train.setting import (
    Setting,
    complete_step_of,
    open_checkpoints,
    open_evaluation,
    open_report,
    open_windows,
)
from train.setup import make_learner, share_work
from train.step import ComputeGradient, Learner


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a loop needs, and nothing else."""

    config: Config
    plan: RunPlan
    learner: Learner
    ranks: Ranks
    stop: Stop
    report: Reporter
    folder: RunFolder
    checkpoints: Checkpoints
    windows: Iterable[Window]
    watch: Callable[[ComputeGradient], ComputeGradient]  # what all parts put around it
    evaluation: Callable[[nn.Module], dict[str, float]] | None
    evaluation_due: Callable[[Progress, Window], bool]
    save_checkpoint: Callable[..., None]
    row_due: Callable[[int], bool]  # after step k
    metrics: Callable[[], dict[str, float]]  # of all parts, for a row
    weights: RunWeights
    closing_lines: Callable[[], list[str]]
    complete_step: CompleteStep

    def begin(self) -> None:
        self.report.begin()
        progress = self.report.progress
        # Not on a resume: that evaluation was made by the first start.
        if self.config.evaluate.at_start and not self.folder.resumed_from:
            progress.evaluation_owed = True
        if progress.step < self.plan.total_steps:  # else finish() follows
            self.evaluate_where_owed()

    def after_step(self, window: Window, losses: Tensor | None, norm: Tensor | None) -> None:
        """Count the step; then row, save and evaluation, where each is due.

        After the last step finish() saves and evaluates.
        """
        progress = self.report.progress
        progress.advance(window, self.plan.batch.samples_per_epoch)
        # From here on the step is complete: a run that fails is saved with it.
        self.complete_step.step = window.k
        last = window.k == self.plan.rate.total_steps
        # Before row and save: the checkpoint must know that an evaluation of its step is still to
        # come.
        progress.evaluation_owed = last or self.evaluation_due(progress, window)
        if self.row_due(window.k):
            computed = self.complete_step.window
            self.log(window if losses is None or computed is None else computed, losses, norm)
        if not last and window.k % self.config.checkpoint.every_steps == 0:
            self.save()
        # After the save: it runs the user's code, and may fail.
        if not last:
            self.evaluate_where_owed()

    def evaluate_where_owed(self) -> None:
        if self.report.progress.evaluation_owed:
            self.evaluate()
        self.report.progress.evaluation_owed = False

    def evaluate(self) -> None:
        if self.evaluation is None:
            return
        if self.learner.device.type != "cpu":
            # Kernels of training that are still queued must not count as time of the evaluation.
            torch.accelerator.synchronize()
        with self.report.clock.paused():
            self.report.eval_row(self.evaluation(self.learner.module))
            best = self.report.best
            if self.config.evaluate.best and best.is_new(self.report.progress.step):
                self.weights.write_best(best)

    def log(self, window: Window, losses: Tensor | None, norm: Tensor | None) -> None:
        """Write a row. Here the host waits for the device: once per row, not once per step."""
        skips = self.learner.skips
        of_step = skips.look([] if losses is None or norm is None else [losses, norm])
        numbers: dict[str, float] = {
            metric_names.LEARNING_RATE: self.plan.rate.at(window.k, window.seen),
            metric_names.SKIPPED_STEPS: skips.total,
        }
        if of_step:
            numbers |= mean_losses(self.learner, window, self.ranks.sum(of_step[0]))
            numbers[metric_names.GRAD_NORM] = of_step[1][0]
        self.report.train_row(window, numbers | self.metrics())
        skips.check(window.k, self.config.max_nonfinite_steps)

    def save(self) -> None:
        """Make a checkpoint, and a row that says what it cost. Raises SaveFailed, on all ranks."""
        start = time.perf_counter()
        with self.report.clock.paused(), self.ranks.pulse.writing():
            self.save_checkpoint(self.report.progress.step, first=self.report.sync)
            self.ranks.from_main(lambda: best_weights.forget_before(self.folder.path))
        self.report.save_row(time.perf_counter() - start)

    def finish(self) -> None:
        # Saved before the last evaluation, which runs the user's code and may fail.
        self.save()
        self.weights.write_final()
        self.evaluate_where_owed()

    def close(self, reason: str, code: int) -> None:
        self.report.close(reason, code, self.closing_lines)


def build(loaded: Loaded, loop: str) -> Run:
    """Everything that a run needs, in the order in which it can be known.

    What can fail on one rank alone is done in `ranks.together`: all ranks then raise the same
    error, where a rank that leaves alone would keep the others waiting.
    Raises UserError where config, data, model and launch do not fit together, AlreadyFinished and
    NoCheckpoint where a run of that name is there.
    """
    config = loaded.config
    stop = Stop(config.duration.hours, config.runtime.watch_launcher)
    check_launcher(config)
    accelerator, ranks = connect(config)
    # Only now: until here a signal shall end a rank at once, which may wait for one that never
    # comes.
    stop.listen()
    # Until the folder is claimed, an error leaves an earlier run of the name as it is.
    best = ranks.together(lambda: checked_best(config))
    prepared = prepare(loaded, loop, ranks)
    effective = prepared.plan.batch.effective
    fitted = prepared.sets.fitted
    learner = make_learner(config, prepared.task, accelerator, effective, ranks, fitted)
    tried = ranks.together(lambda: preflight(learner, prepared.sets, prepared.plan, config))
    # Before anything is wrapped: inside DDP one rank without memory leaves the others in a
    # reduction.
    prepared = auto_micro.choose_micro_batch(prepared, learner, tried, loaded, ranks)
    share_work(learner, prepared.sets, config, ranks)
    check_same_model(learner, tried.trial, ranks)
    find = partial(newest, say=print_error)
    folder = ranks.from_main(lambda: claim(config, prepared.plan, find, named, stop.requested))
    setting = Setting(
        loaded=loaded,
        prepared=prepared,
        learner=learner,
        ranks=ranks,
        stop=stop,
        tried=tried,
        folder=folder,
    )
    try:
        # Rank 0 alone looks: the agreement on a stop takes it to the others.
        if ranks.is_main:
            stop.watch(folder.path / "stop", folder.is_held)
        # Before the report: the id in W&B and the step are read from the checkpoint.
        state = RunState(best, prepared.plan.tokens_per_sample)
        checkpoints = ranks.together(lambda: open_checkpoints(setting, state))
        if config.evaluate.best and folder.resumed_from:
            best_weights.settle(folder.path, best, ranks, state.progress)
        report = open_report(setting, state)
    except BaseException as error:
        if ranks.is_main:
            folder.end_early(f"{type(error).__name__}: {error}", code=code_of(error))
        raise
    # From here on the report ends the run: it has open files, and W&B.
    try:
        return _join(setting, checkpoints, report)
    except BaseException as error:
        report.close(f"{type(error).__name__}: {error}", code_of(error))
        raise


def list_parts(setting: Setting, report: Reporter) -> tuple[Part, ...]:
    """The features of a run, from the inside out: each wraps what those above it have wrapped.

    One order serves the gradient, the windows, the evaluation and the save. A feature is its file
    and one entry here.
    """
    config = setting.config
    learner = setting.learner
    ranks = setting.ranks
    folder = setting.folder
    row_due = setting.row_due()
    apart = Apart()
    return (
        # The innermost: all others see the gradient of the step.
        late_weights.part(setting.tried.reading.is_late),
        stage_numbers.part(config.optimizer, setting.plan.batch, learner.optimizer, learner.module),
        # Evaluates a second module besides the first: what wraps an evaluation sees both.
        ema.part(learner, setting.plan.ema_decays),
        # Outside of the average of the weights, which generates no texts.
        generations.part(
            learner, setting.prepared.sets, config, ranks, report.show, setting.stop.requested
        ),
        # Times what a rank computes, and none of the measuring below.
        measured_shares.part(config, setting.plan, learner, ranks, report, setting.shares),
        unproven.part(config, setting.plan),
        # Records the reading of windows, but none of the measuring around it.
        profiler.part(config.profile.steps, folder.inside, ranks),
        # Its times are those of whole steps: an evaluation or a save belongs to none.
        step_timing.part(learner, ranks, row_due, apart),
        # The peak of an evaluation is that of all of the above.
        peaks.part(learner, setting.tried.trial, row_due, apart, setting.plan.prediction),
        # Needs the times of a step from those above, and the gradient in .grad.
        noise_scale.part(learner, config, ranks),
        scaling_regime.part(config.optimizer, changes(config, setting.plan.batch), report.say),
        loss_scale.part(learner),
        mfu.part(learner, setting.tried.trial, ranks, report, config),
        compilations.part(learner),
        # Counts what comes out of a step, however often it was computed inside.
        loss_mean.part(learner, ranks),
        # Looks at what the optimizer is about to get, and at the weights before anything is saved.
        rank_consistency.part(learner, ranks),
        # The outermost: it computes gradients of its own, which none of the others may count.
        audit.part(learner, config, setting.tried, setting.plan, ranks, report, apart),
    )


def _join(setting: Setting, checkpoints: Checkpoints, report: Reporter) -> Run:
    config = setting.config
    learner = setting.learner
    ranks = setting.ranks
    folder = setting.folder
    parts = Parts(list_parts(setting, report))
    ranks.together(lambda: checkpoints.add(parts.states()))
    checkpoints.forget()
    every = config.evaluate
    complete_step = complete_step_of(setting, report)

    def watch(compute_gradient: ComputeGradient) -> ComputeGradient:
        # Seeded inside of all parts that may compute a gradient twice: it then draws the same.
        drawing = seeded(compute_gradient, learner, config.seed, ranks.rank)
        return complete_step.around(parts.gradient(learner.parallel.around(drawing)))

    windows = ranks.alone.windows(
        open_windows(setting, report.progress, parts.shares), parts.windows
    )
    evaluation = None
    if setting.prepared.sets.evaluation:
        evaluation = parts.evaluation(open_evaluation(setting, report))
    exports = {"model": learner.module, **parts.exports()}
    return Run(
        config=config,
        plan=setting.plan,
        learner=learner,
        ranks=ranks,
        stop=setting.stop,
        report=report,
        folder=folder,
        checkpoints=checkpoints,
        windows=windows,
        watch=watch,
        evaluation=evaluation,
        evaluation_due=Interval(every.every_steps, every.every_samples, every.every_tokens).due,
        save_checkpoint=parts.save(save_in_own(checkpoints, folder)),
        row_due=setting.row_due(),
        metrics=partial(parts.metrics, largest(ranks), ranks.alone.kept),
        weights=RunWeights(exports, folder, ranks, config.data.tokenizer),
        closing_lines=parts.closing_lines,
        complete_step=complete_step,
    )
