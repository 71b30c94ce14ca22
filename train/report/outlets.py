"""Where rank 0 reports to: the files of the run folder, the screen, the journal, the tracker."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from omegaconf import OmegaConf

from train.config import Config, Loaded, needs_trust
from train.disk import open_own
from train.errors import FAILED
from train.installation import IS_CLONE, command
from train.plan.run_plan import RunPlan
from train.redaction import clean
from train.report.claim import cannot_write
from train.report.columns import Columns
from train.report.environment import environment, git_patch
from train.report.folder import RunFolder
from train.report.grace import slow_stop
from train.report.journal import Journal
from train.report.restarts import job_id
from train.report.screen import Screen
from train.report.segments import hashes, segments_of
from train.report.state import RunState
from train.report.tables import Tables
from train.report.tracker import Tracker
from train.report.weights import log_model


class Sink(Protocol):
    def log(self, row: Mapping[str, float]) -> None: ...
    def finish(self, exit_code: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outlets:
    """All of them open. Only rank 0 has any."""

    folder: RunFolder
    journal: Journal
    screen: Screen
    tracker: Tracker
    columns: Columns
    tables: Tables
    next_line: str  # what to type after a run that has finished
    finished: Callable[[], str]  # what else such a run does; gives a line for the end, or nothing
    warned_of_slow_stop: bool

    @property
    def sinks(self) -> Sequence[Sink]:
        """In the order in which a row goes through them: the record of truth first."""
        return (self.journal, self.screen, self.tracker, self.columns)


def open_outlets(
    state: RunState,
    plan: RunPlan,
    loaded: Loaded,
    folder: RunFolder,
    summary: Mapping[str, Any],
    lines: Sequence[str],
) -> Outlets:
    """Write down what is known before the first step, say it, and open all that rows go to.

    `summary`, `lines`: what is known of the learner, for tables and for the screen. A state that
    goes on from a checkpoint continues its rows and its W&B run, whose id is written into the
    state.

    Nothing that looks like a secret is written, said or sent. Raises FolderRefused where nothing
    can be written.
    """
    with ExitStack() as opened:  # what is open when another fails to open is closed again
        try:
            outlets = _open(opened, state, plan, loaded, folder, summary, lines)
        except OSError as error:
            raise cannot_write(folder.path, error) from error
        opened.pop_all()
        return outlets


def _open(
    opened: ExitStack,
    state: RunState,
    plan: RunPlan,
    loaded: Loaded,
    folder: RunFolder,
    summary: Mapping[str, Any],
    lines: Sequence[str],
) -> Outlets:
    config = OmegaConf.to_container(OmegaConf.create(loaded.yaml()), resolve=False)
    config = clean(config)
    surroundings = environment(sys.argv, loaded.path)
    facts = {**summary, "versions": surroundings["packages"]}
    derived = clean(_derived(plan, folder)) | facts
    _write_first_files(folder, config, surroundings)

    screen = Screen(plan.total_steps, _open_log(folder), summary["device_memory_gib"])
    opened.callback(_abandon, screen)
    if folder.moved_to:
        screen.say(f"an earlier run of this name is now in {folder.moved_to}")
    screen.say(*plan.lines(), _model_line(summary), *lines, f"outputs   {folder.path}")
    warning = ""
    if folder.resumed_from:
        screen.say(
            f"resumed   from {folder.resumed_from}: step {state.progress.step:,} of "
            f"{plan.total_steps:,}"
        )
        warning = slow_stop(0.0, state.last_save_seconds or 0.0)
        screen.say(*filter(None, [warning]), *folder.changed)

    tracker = Tracker.start(
        loaded.config.wandb,
        run_name=plan.name,
        default_group=loaded.path.stem,
        job_type="train",
        folder=folder.path,
        run_config={**config, "derived": derived, "environment": surroundings},
        run_id=state.run_id,
    )
    opened.callback(_abandon, tracker)
    journal = Journal(
        folder.path / "metrics.jsonl", state.progress.step, state.progress.evaluation_owed
    )
    opened.callback(_abandon, journal)
    folder.follow("metrics.jsonl", journal.file)
    columns = Columns(derived, state.best, state.whole_run, tracker, folder, state.progress.step)
    screen.say(*_about(tracker, state, journal.taken_out))
    state.run_id = tracker.run_id
    # Last: now the run has begun.
    folder.write_json("plan.json", plan.as_dict() | {"derived": derived})

    return Outlets(
        folder=folder,
        journal=journal,
        screen=screen,
        tracker=tracker,
        columns=columns,
        tables=Tables(folder, screen, tracker),
        next_line="" if "--smoke" in loaded.flags else _next_line(folder.path, loaded.config),
        finished=_finished(loaded, tracker, folder),
        warned_of_slow_stop=bool(warning),
    )


def _about(tracker: Tracker, state: RunState, last: int) -> list[str]:
    """Where the rows go. `last`: the last step whose row an earlier start has written, and this one
    will again.

    W&B takes no row back.
    """
    lines = [f"W&B       {tracker.how_to_see}"]
    if tracker.unused:
        lines.append(f"          {tracker.unused}")
    if last and tracker.run_id is not None and tracker.run_id == state.run_id:
        first = state.progress.step + 1
        steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        lines.append(
            f"          has rows of {steps} from before, and gets them again; metrics.jsonl has "
            "each once"
        )
    return lines


def _finished(loaded: Loaded, tracker: Tracker, folder: RunFolder) -> Callable[[], str]:
    if loaded.config.wandb.log_model:
        return partial(log_model, tracker, folder.path / "final")
    return str


def _derived(plan: RunPlan, folder: RunFolder) -> dict[str, Any]:
    """What the plan gives, and the hashes of all that the run was trained with since its first
    step.
    """
    segments = segments_of(plan, folder.resumed_from)
    return {**plan.derived(), **hashes(segments), "segments": segments}


def _write_first_files(folder: RunFolder, config: Any, surroundings: Mapping[str, Any]) -> None:
    """environment.json comes first: a restart is known by it."""
    folder.write_json("environment.json", {**surroundings, "job": job_id()})
    folder.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    patch = git_patch()
    if patch:
        folder.write_text("git.patch", patch)


def _open_log(folder: RunFolder) -> TextIO:
    log_file = os.fdopen(open_own(folder.inside("log.txt")), "a", encoding="utf-8")
    folder.follow("log.txt", log_file)
    return log_file


def _abandon(sink: Sink) -> None:
    with suppress(OSError):
        sink.finish(FAILED)


def _model_line(summary: Mapping[str, Any]) -> str:
    return (
        f"model     {summary['parameters']:,} parameters, {summary['parameters_gib']:.3g} GiB, on "
        f"{summary['device']} with {summary['device_memory_gib']:.3g} GiB"
    )


def _next_line(folder: Path, config: Config) -> str:
    evaluate = command("evaluate")
    executable = Path(sys.executable)  # not resolved: a virtual environment's python is a link
    if IS_CLONE and executable.is_relative_to(Path.cwd()):
        evaluate = f"{executable.relative_to(Path.cwd())} -m train.evaluate"
    called = {
        "model.target": config.model.target,
        "task.target": config.task.target,
        "data.source": config.data.source,
    }
    trust = " --trust" if needs_trust(called, folder) else ""
    return f"next      {evaluate} {shlex.quote(str(folder))}{trust}"
