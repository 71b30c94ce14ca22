"""build(config) -> Run: all that a loop needs. The one place where the rooms below are joined."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from train import names
from train.checkpoint import Checkpoints, HasState, named, newest
from train.config import Config, Loaded
from train.data import Sets, TrainingSet, Windows
from train.ema import Ema
from train.evaluation import Evaluation, floating_buffers
from train.guard import agreed, guarded
from train.initial import digests
from train.memory import Memory, over_ranks
from train.noise import NoiseScale
from train.optimizer import OptimizerState
from train.phases import Phases
from train.preparing import check_same_everywhere, facts, load_data, prepare, try_out
from train.profiling import profiled
from train.ranks import Ranks
from train.reduction import reduced
from train.refusals import code_of
from train.report import Interval, Progress, Reporter, RunFolder, RunPlan, claim, open_report, tell
from train.samples import sampled
from train.saved import save_weights
from train.setup import connect, loss_scale, make_learner
from train.signals import Stop
from train.step import ComputeGradient, Learner, NonFiniteGradient
from train.tasks import by_term
from train.utilisation import utilisation
from train.watchdog import Watchdog
from train.window import Window


@dataclass(frozen=True)
class Run:
    """What a loop needs, and nothing else."""

    config: Config
    plan: RunPlan
    learner: Learner
    windows: Iterable[Window]
    ranks: Ranks
    stop: Stop
    report: Reporter
    folder: RunFolder
    checkpoints: Checkpoints
    save_checkpoint: Callable[..., None]
    evaluation: Callable[[], dict[str, float]] | None
    evaluation_due: Callable[[Progress, Window], bool]
    gauges: Sequence[Callable[[], dict[str, float]]]  # each gives {metric: value} since the last row
    watch: Callable[[ComputeGradient], ComputeGradient]  # measures and guards it
    saved: Mapping[str, nn.Module]  # by the names of their files in final/

    def begin(self) -> None:
        self.report.begin()
        if self.config.evaluate.at_start and not self.folder.resumed_from:
            self.evaluate()
        self.checkpoints.restore_generators()

    def after_step(self, window: Window, losses: Tensor | None, norm: Tensor | None) -> None:
        """Count the step; evaluate and log where that is due, and after the last step; save where that is due."""
        progress = self.report.progress
        progress.advance(window, self.plan.batch.samples_per_epoch)
        last = window.k == self.plan.total_steps
        if last or self.evaluation_due(progress, window):
            self.evaluate()
        if _row_due(self.config, self.plan, window.k):
            self.log(window, losses, norm)
        if not last and window.k % self.config.checkpoint.every_steps == 0:
            self.save()

    def evaluate(self) -> None:
        if self.evaluation is None:
            return
        if self.learner.device.type != "cpu":
            torch.accelerator.synchronize()  # training that is still under way must not count as evaluation
        with self.report.clock.paused():
            self.report.eval_row(self.evaluation())
            if self.config.evaluate.best and self.report.best.is_new(self.report.progress.step):
                self.save_weights("best")

    def log(self, window: Window, losses: Tensor | None, norm: Tensor | None) -> None:
        """Here the host waits for the device: once per row, not once per step."""
        learner = self.learner
        learner.skips.look()
        numbers = {names.LEARNING_RATE: self.plan.rate.at(window.k), names.SKIPPED_STEPS: learner.skips.total}
        if losses is not None and norm is not None:
            sums = zip(window.weights.items(), self.ranks.sum(losses.tolist()), strict=True)
            terms = {term: total / weight for (term, weight), total in sums if weight}
            numbers |= {f"train/{term}": value for term, value in terms.items()}
            numbers[names.LOSS] = sum(self.learner.coefficients[term] * value for term, value in terms.items())
            numbers[names.GRAD_NORM] = norm.item()
        for take in self.gauges:
            numbers |= take()
        self.report.train_row(window, numbers)
        limit = self.config.max_nonfinite_steps
        if learner.skips.longest >= limit:
            raise NonFiniteGradient(
                f"by step {window.k} the gradient was not finite in {learner.skips.longest} steps in a row "
                f"(max_nonfinite_steps={limit}). Try a smaller optimizer.lr, a warm-up, optimizer.max_grad_norm=1.0; "
                f"precision=fp32 tells whether low precision is to blame"
            )

    def save(self) -> None:
        """Make a checkpoint; what it costs is told. Raises SaveFailed, on all ranks."""
        start = time.perf_counter()
        with self.report.clock.paused():
            self.ranks.copy_from_main(floating_buffers(self.learner.module))
            self.save_checkpoint(self.report.progress.step, first=self.report.sync)
        self.report.save_row(time.perf_counter() - start)

    def finish(self) -> None:
        self.save()
        self.save_weights("final")

    def save_weights(self, place: str) -> None:
        tokenizer = self.config.data.tokenizer
        for name, module in self.saved.items():
            self.ranks.from_main(partial(save_weights, module, self.folder.path / place, name, tokenizer))


def build(loaded: Loaded, loop: str) -> Run:
    """All parts of a run. Each thing that can fail on one rank alone is done by all together.

    Raises PlanError, DataError, TaskError and NotExact where things do not fit together, FolderRefused, AlreadyFinished
    and NoCheckpoint where a run of that name is there, RuntimeError where other ranks met than were asked for.
    """
    config = loaded.config
    stop = Stop(config.duration.hours)
    accelerator, ranks = connect(config)
    stop.listen()  # not before: a signal then ends a rank that waits for one that never comes
    task, splits = ranks.first_of_node(lambda: load_data(config))
    weights = ranks.from_main(lambda: digests(config))
    best, sets, plan, numbers = ranks.together(lambda: prepare(loaded, loop, task, splits, weights))
    check_same_everywhere(plan, ranks)
    learner = make_learner(config, task, accelerator, numbers, ranks)
    exactness, samples = ranks.together(lambda: try_out(learner, sets, config))
    ema = Ema(learner, config.ema.decay) if config.ema.decay is not None else None
    folder = ranks.from_main(lambda: claim(config, plan, lambda path: newest(path, tell), named, stop.requested))
    try:
        stop.watch(folder.path / "stop")
        report = Reporter(plan, best, stop.ask)
        more: dict[str, HasState] = {}
        more |= {"ema": ema} if ema else {}
        noise = NoiseScale(ranks, config.noise_scale.every_steps, config.batch.micro_tokens is not None)
        more |= {"noise_scale": noise}
        checkpoints = ranks.together(lambda: _resumed(folder, learner, report, config, ranks, more))
        memory = Memory(learner.device, learner.module, learner.optimizer)
        phases = Phases(ranks, learner.optimizer, learner.parameters, memory.mark, partial(_row_due, config, plan))
        windows: Iterable[Window] = _windows(samples, learner, report, config, ranks, exactness.terms, stop)
        windows = phases.windows(profiled(windows, config.profile.steps, folder.path / "profile", ranks.rank))
        watchdog = Watchdog(ranks, config.runtime.timeout_seconds, folder.path, folder.end_early)
        windows = watchdog.windows(windows)
        evaluation: Callable[[], dict[str, float]] | None = _evaluation(sets, learner, ranks, plan, watchdog.beat)
        evaluation = ema.around(evaluation) if ema else evaluation
        evaluation = evaluation and sampled(evaluation, learner, sets, config, ranks, report.show)
        gauges = [lambda: over_ranks(ranks.gather(memory.take())), lambda: noise.take(phases.take())]
        gauges += [lambda: loss_scale(learner.scaler), utilisation(learner, exactness.trial, ranks, report, config)]
        told = facts(learner, exactness), exactness.lines(config.batch.exact)
        ranks.from_main(lambda: open_report(report, loaded, folder, *told))
        report.learnt = [memory.summary, noise.verdict]
    except BaseException as error:
        if ranks.is_main:
            folder.end_early(f"{type(error).__name__}: {error}", code=code_of(error))
        raise

    def watch(compute_gradient: ComputeGradient) -> ComputeGradient:
        return guarded(noise.around(phases.around(reduced(compute_gradient, learner, ranks))), ranks)

    watched = evaluation and phases.outside(memory.around(evaluation, names.EVAL_PEAK))
    every = config.evaluate
    due = Interval(every.every_steps, every.every_samples, every.every_tokens).due
    saved = {"model": learner.module} | ({"ema": ema.module} if ema else {})
    save = agreed(phases.outside(checkpoints.save), learner, ranks)
    parts = (windows, ranks, stop, report, folder, checkpoints, save, watched, due, gauges, watch, saved)
    return Run(config, plan, learner, *parts)


def _windows(
    samples: TrainingSet,
    learner: Learner,
    report: Reporter,
    config: Config,
    ranks: Ranks,
    terms: Sequence[str],
    stop: Stop,
) -> Windows:
    """Those that are still to be trained."""
    plan, progress, loss_weight = report.plan, report.progress, learner.task.loss_weight
    samples, on_gpu = samples.cast(learner.dtype), learner.device.type == "cuda"
    return Windows(
        parts=samples.parts(plan.batch, config.seed, ranks.rank, progress.place, config.data.overfit),
        ranks=ranks,
        terms=terms,
        loss_weight=lambda batch: by_term(loss_weight(batch)),
        stop_requested=stop.requested,
        pin_memory=on_gpu,
        first=progress.step + 1,
        last=plan.total_steps,
        expect=learner.feed.expect if on_gpu else None,
    )


def _evaluation(
    sets: Sets, learner: Learner, ranks: Ranks, plan: RunPlan, beat: Callable[[], None]
) -> Evaluation | None:
    if not sets.evaluation:
        return None
    module, device, dtype = learner.module, learner.device, learner.dtype
    return Evaluation(sets.evaluation, learner.task, module, ranks, device, dtype, plan.batch.micro, beat)


def _resumed(
    folder: RunFolder, learner: Learner, report: Reporter, config: Config, ranks: Ranks, more: Mapping[str, HasState]
) -> Checkpoints:
    """Brings the learner, the report and what else has a state to where the run goes on from, if it does."""
    checkpoints = Checkpoints(
        folder=folder.path / "checkpoints",
        ranks=ranks,
        keep=config.checkpoint.keep,
        seed=config.seed,
        module=learner.module,
        state={
            "optimizer": OptimizerState(learner.optimizer),
            "skips": learner.skips,
            "scaler": learner.scaler,
            "report": report,
            **more,
        },
        resumed_from=folder.resumed_from,
    )
    checkpoints.restore()
    return checkpoints


def _row_due(config: Config, plan: RunPlan, k: int) -> bool:
    return k % config.log.every_steps == 0 or k == plan.total_steps
