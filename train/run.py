"""build(config) -> Run: all that a loop needs. The one place where the rooms below are joined."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from train import names
from train.batch import sample_ids
from train.config import Config, Loaded, curve_hash, mathematics, recipe_hash, run_name, source_hash
from train.data import Rows, Sets, Windows, open_sets
from train.evaluation import Evaluation, floating_buffers
from train.exact import Exactness, NotExact, TaskError, judge
from train.guard import guarded
from train.memory import Memory, over_ranks
from train.noise import NoiseScale
from train.optimizer import scaled_numbers
from train.phases import Phases
from train.planning import plan_batch, plan_rate
from train.profiling import profiled
from train.ranks import Ranks, asked_world_size
from train.report import Best, Interval, Reporter, RunFolder, RunPlan, check_login, claim, open_report, redacted
from train.saved import save_final
from train.schedule import Scaled
from train.setup import connect, device_facts, make_learner, make_task
from train.signals import Stop
from train.step import ComputeGradient, Learner, NonFiniteGradient
from train.tasks import Task, by_term
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
    evaluation: Callable[[], dict[str, float]] | None
    gauges: Sequence[Callable[[], dict[str, float]]]  # each gives {metric: value} since the last row
    watch: Callable[[ComputeGradient], ComputeGradient]  # measures and guards it

    def begin(self) -> None:
        if self.config.evaluate.at_start:
            self.evaluate()

    def after_step(self, window: Window, losses: Tensor | None, norm: Tensor | None) -> None:
        """Count the step; evaluate and log where that is due, and after the last step."""
        progress, every = self.report.progress, self.config.evaluate
        progress.advance(window, self.plan.batch.samples_per_epoch)
        last = window.k == self.plan.total_steps
        if last or Interval(every.every_steps, every.every_samples).due(progress, window):
            self.evaluate()
        if _row_due(self.config, self.plan, window.k):
            self.log(window, losses, norm)

    def evaluate(self) -> None:
        if self.evaluation is None:
            return
        if self.learner.device.type != "cpu":
            torch.accelerator.synchronize()  # training that is still under way must not count as evaluation
        with self.report.clock.paused():
            self.report.eval_row(self.evaluation())

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
                f"precision=fp32 tells whether bf16 is to blame"
            )

    def save(self) -> None:
        self.ranks.copy_from_main(floating_buffers(self.learner.module))
        if self.ranks.is_main:
            save_final(self.learner.module, self.folder.path)
        self.ranks.barrier()


def build(loaded: Loaded, loop: str) -> Run:
    """All parts of a run. Each thing that can fail on one rank alone is done by all together.

    Raises PlanError, DataError, TaskError and NotExact where config, data, task and ranks do not fit together,
    FolderRefused and AlreadyFinished where a run of that name is there, RuntimeError where other ranks met than were
    asked for.
    """
    config = loaded.config
    stop = Stop()
    stop.listen()
    accelerator, ranks = connect(config)
    best, task, sets, plan, numbers = ranks.together(lambda: _prepare(loaded, loop))
    _check_same_everywhere(plan, ranks)
    learner = make_learner(config, task, accelerator, numbers)
    exactness = ranks.together(lambda: _judge(learner, sets.train, config))
    folder = ranks.from_main(lambda: claim(config, plan))
    try:
        memory = Memory(learner.device, learner.module, learner.optimizer)
        phases = Phases(learner.optimizer, learner.parameters, memory.mark, lambda k: _row_due(config, plan, k))
        noise = NoiseScale(ranks, config.noise_scale.every_steps)
        windows: Iterable[Window] = Windows(
            rows=sets.train.cast(learner.dtype),
            plan=plan.batch,
            seed=config.seed,
            ranks=ranks,
            terms=exactness.terms,
            loss_weight=lambda batch: by_term(task.loss_weight(batch)),
            stop_requested=stop.requested,
            pin_memory=learner.device.type == "cuda",
            last=plan.total_steps,
            overfit=config.data.overfit,
        )
        windows = phases.windows(profiled(windows, config.profile.steps, folder.path / "profile", ranks.rank))
        evaluation = _evaluation(sets, learner, ranks, plan)
        report = _report(loaded, plan, best, folder, learner, exactness, ranks)
        report.learnt = [memory.summary, noise.verdict]
    except BaseException as error:
        if ranks.is_main:
            folder.end_early(f"{type(error).__name__}: {error}")
        raise

    def watch(compute_gradient: ComputeGradient) -> ComputeGradient:
        return guarded(noise.around(phases.around(compute_gradient)), ranks)

    watched = evaluation and phases.outside(memory.around(evaluation, names.EVAL_PEAK))
    gauges = [lambda: over_ranks(ranks.gather(memory.take())), lambda: noise.take(phases.take())]
    return Run(config, plan, learner, windows, ranks, stop, report, folder, watched, gauges, watch)


def _prepare(loaded: Loaded, loop: str) -> tuple[Best, Task, Sets, RunPlan, Scaled]:
    """All that follows from config and data without a device."""
    config = loaded.config
    best = Best.of(config.evaluate.best)
    check_login(config.wandb)
    task = make_task(config)
    sets = open_sets(config, task.columns)
    return best, task, sets, *make_plan(loaded, loop, sets)


def _check_same_everywhere(plan: RunPlan, ranks: Ranks) -> None:
    """Ranks that read other data, or run other code, would train something that nobody asked for."""
    own = {"curve_hash": plan.curve_hash, "training samples": plan.batch.dataset_size, **plan.eval_samples}
    for rank, other in enumerate(ranks.gather(own)):
        if other != own:
            raise RuntimeError(f"rank {rank} has {other}, this one has {own}: do all nodes see the same files?")


def _evaluation(sets: Sets, learner: Learner, ranks: Ranks, plan: RunPlan) -> Evaluation | None:
    if not sets.evaluation:
        return None
    module, device, dtype = learner.module, learner.device, learner.dtype
    return Evaluation(sets.evaluation, learner.task, module, ranks, device, dtype, plan.batch.micro)


def _report(
    loaded: Loaded, plan: RunPlan, best: Best, folder: RunFolder, learner: Learner, exactness: Exactness, ranks: Ranks
) -> Reporter:
    if not ranks.is_main:
        return Reporter(plan, best, sinks=[])
    lines = exactness.lines(loaded.config.batch.exact)
    return open_report(loaded, plan, best, folder, _facts(learner, exactness), lines)


def show_plan(loaded: Loaded, loop: str) -> None:
    """The plan on the screen, for the ranks that launch.sh or the launcher would start; touches no device."""
    task = make_task(loaded.config)
    print(*make_plan(loaded, loop, open_sets(loaded.config, task.columns))[0].lines(), sep="\n")


def make_plan(loaded: Loaded, loop: str, sets: Sets) -> tuple[RunPlan, Scaled]:
    """The plan for the ranks that were asked for, and the optimizer's numbers in it."""
    config = loaded.config
    batch = plan_batch(config, loop, asked_world_size(), len(sets.train))
    numbers = scaled_numbers(config.optimizer, batch.effective)
    identity = mathematics(config, batch.effective)
    code = source_hash(config)
    plan = RunPlan(
        name=run_name(replace(loaded, overrides=redacted(loaded.overrides))),
        loop=loop,
        precision=config.precision,
        batch=batch,
        rate=plan_rate(config, batch, numbers.lr),
        rate_arithmetic=numbers.arithmetic,
        eval_samples={name: len(rows) for name, rows in sets.evaluation.items()},
        identity=redacted(identity | {"code": code}),
        curve_hash=curve_hash(identity, code),
        recipe_hash=recipe_hash(identity, code),
    )
    return plan, numbers


def _judge(learner: Learner, rows: Rows, config: Config) -> Exactness:
    """Tried on the first samples of the first epoch, the same on every rank; few, since more prove no more."""
    first = sample_ids(len(rows), config.seed, 0, 0, min(len(rows), 8))
    exactness = judge(learner, rows.fetch(first), config.precision)
    if exactness.mistakes and config.batch.exact != "ignore":
        raise TaskError(f"{exactness.mistakes[0]}. (batch.exact=ignore trains all the same)")
    if config.batch.exact == "required" and exactness.exact == "false":
        reasons = "".join(f"\n  {reason}" for reason in exactness.reasons)
        raise NotExact(f"batch.exact=required, but this run would not be exact:{reasons}\nType: batch.exact=warn")
    return exactness


def _facts(learner: Learner, exactness: Exactness) -> dict[str, Any]:
    parameters = list(learner.module.parameters())
    return {
        "exact": exactness.exact,
        "exact_reasons": "; ".join(exactness.reasons),
        "parameters": sum(p.numel() for p in parameters),
        "parameters_gib": sum(p.numel() * p.element_size() for p in parameters) / 2**30,
        **device_facts(learner.device),
    }


def _row_due(config: Config, plan: RunPlan, k: int) -> bool:
    return k % config.log.every_steps == 0 or k == plan.total_steps
