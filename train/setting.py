"""What a run opens once it has its folder: checkpoints, report, windows, evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from train.batch import BatchPlan
from train.batch.window import Place
from train.checkpoint import Checkpoints, check_savable
from train.config import Config, Loaded
from train.data import Spare, Windows
from train.data.shares import RankShare
from train.distributed.ranks import Ranks
from train.distributed.stop import Stop
from train.evaluation.evaluator import Evaluation
from train.exactness.lone_sample import refuses_lone_samples
from train.exactness.preflight import Preflight
from train.gradients.complete_step import CompleteStep
from train.gradients.shrink import Shrink
from train.parts import Around
from train.plan.make import Prepared
from train.plan.run_plan import RunPlan
from train.report import Outlets, Progress, Reporter, RunFolder, RunState, open_outlets
from train.setup import kept_states, notes_of, summary
from train.step import Learner
from train.tasks import by_term


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known once a run has its folder; the rest of it is made from this."""

    loaded: Loaded
    prepared: Prepared
    learner: Learner
    ranks: Ranks
    stop: Stop
    tried: Preflight
    folder: RunFolder

    @property
    def config(self) -> Config:
        return self.loaded.config

    @property
    def plan(self) -> RunPlan:
        return self.prepared.plan

    def shares(self, batch: BatchPlan, place: Place) -> Iterator[RankShare]:
        """This rank's shares of the steps from `place` on."""
        samples = self.tried.reading.samples
        config = self.config
        return samples.shares(batch, config.seed, self.ranks.rank, place, config.data.overfit)

    def row_due(self) -> Callable[[int], bool]:
        """Whether step k gets a row. Called several times a step: it looks nothing up."""
        every_steps = self.config.log.every_steps
        total_steps = self.plan.total_steps
        return lambda k: k % every_steps == 0 or k == total_steps


def open_checkpoints(setting: Setting, state: RunState) -> Checkpoints:
    """Opens the checkpoints, and loads the one that the run resumes from, if there is one."""
    learner = setting.learner
    check_savable(learner.module)
    checkpoints = Checkpoints(
        folder=setting.folder.path / "checkpoints",
        ranks=setting.ranks,
        keep=setting.config.checkpoint.keep,
        module=learner.module,
        writes_state=learner.parallel.writes_state,
        resumed_from=setting.folder.resumed_from,
        run=setting.folder.run,
    )
    checkpoints.add({**kept_states(learner), "report": state})
    resumed_from = setting.folder.resumed_from
    if resumed_from and resumed_from.parent.resolve() != checkpoints.folder.resolve():
        state.begin_from_another()
    return checkpoints


def open_report(setting: Setting, state: RunState) -> Reporter:
    """Of this rank; only rank 0's has outlets."""
    ranks = setting.ranks
    outlets = ranks.together(lambda: _open_outlets(setting, state) if ranks.is_main else None)
    return Reporter(setting.plan, state, outlets, setting.stop.ask, ranks.alone.kept)


def _open_outlets(setting: Setting, state: RunState) -> Outlets:
    exactness = setting.tried.exactness
    facts = {"exact": exactness.exact, "exact_reasons": "; ".join(exactness.reasons)}
    facts |= summary(setting.learner)
    lines = [
        *setting.tried.reading.notes,
        *notes_of(setting.learner),
        *exactness.lines(setting.config.batch.exact),
    ]
    return open_outlets(state, setting.plan, setting.loaded, setting.folder, facts, lines)


def open_windows(setting: Setting, progress: Progress, around: Around) -> Windows:
    """The windows of the steps that are left; `around`: how parts wrap this rank's shares."""
    learner = setting.learner
    return Windows(
        shares=around(setting.shares(setting.plan.batch, progress.place)),
        ranks=setting.ranks,
        terms=setting.tried.exactness.terms,
        loss_weight=lambda batch: by_term(learner.task.loss_weight(batch)),
        check=learner.parallel.check,
        announce=learner.feed.announce,
        spare=Spare(setting.tried.trial, setting.ranks.alone),
        stop_requested=setting.stop.requested,
        first=progress.step + 1,
        seen=progress.samples_seen,
        last=setting.plan.total_steps,
    )


def complete_step_of(setting: Setting, report: Reporter) -> CompleteStep:
    """With an answer to a step that runs out of memory."""
    learner = setting.learner
    complete_step = CompleteStep(report.progress.step, learner)
    Shrink(
        plan=setting.plan,
        config=setting.config,
        complete_step=complete_step,
        learner=learner,
        ranks=setting.ranks,
        folder=setting.folder.path,
        warn=report.warn,
        refuses=refuses_lone_samples(learner, setting.tried.trial, setting.plan, setting.config),
    )
    return complete_step


def open_evaluation(setting: Setting, report: Reporter) -> Evaluation:
    learner = setting.learner
    return Evaluation(
        sets=setting.prepared.sets.evaluation,
        task=learner.task,
        ranks=setting.ranks,
        device=learner.device,
        dtype=learner.dtype,
        batch_size=setting.plan.samples_evaluated_at_once,
        needs_all_ranks=learner.parallel.is_sharded,
        stop_requested=setting.stop.requested,
        on_batch=report.eval_batch,
    )
