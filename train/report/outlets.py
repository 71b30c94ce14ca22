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
from train.plan.describe import describe
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
    next_line: str
    """The command to run after a run that has finished."""
    send_weights: Callable[[], str]
    """Called once the run has finished; gives a line for the end, or an empty one."""
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
    """Write and print what is known before the first step, and open all that rows go to.

    `summary`, `lines`: what is known of the learner, for tables and for the screen. A state that
    resumes from a checkpoint continues its rows and its W&B run, whose id is written into the
    state. Nothing that looks like a secret is written, printed or sent.

    Raises FolderRefused where nothing can be written.
    """
    with ExitStack() as opened:  # closes what is open when another fails to open
        opening = _Opening(opened=opened, state=state, plan=plan, loaded=loaded, folder=folder)
        try:
            outlets = opening.open(summary, lines)
        except OSError as error:
            raise cannot_write(folder.path, error) from error
        opened.pop_all()
        return outlets


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """Opens the outlets one after the other."""

    opened: ExitStack
    state: RunState
    plan: RunPlan
    loaded: Loaded
    folder: RunFolder

    def open(self, summary: Mapping[str, Any], lines: Sequence[str]) -> Outlets:
        # Not resolved: interpolations such as oc.env would put the environment's secrets into the
        # config.
        config = clean(OmegaConf.to_container(OmegaConf.create(self.loaded.yaml()), resolve=False))
        surroundings = environment(sys.argv, self.loaded.path)
        derived = {
            **clean(_derived(self.plan, self.folder)),
            **summary,
            "versions": surroundings["packages"],
        }
        # First, while nothing else of this start is there: a restart is recognised by them.
        _write_first_files(self.folder, config, surroundings)
        screen = self._open_screen(summary, lines)
        # Before the tracker, which may wait for a server: the screen shows the plan by then.
        warned_of_slow_stop = self._say_resumed(screen)
        # The config goes to W&B as one mapping, with what was derived from it and where it ran.
        tracker = self._open_tracker({**config, "derived": derived, "environment": surroundings})
        # Opening it cuts rows off: a start that the tracker refuses has changed none.
        journal = self._open_journal()
        progress = self.state.progress
        columns = Columns(
            derived=derived,
            best=self.state.best,
            figures=self.state.figures,
            tracker=tracker,
            folder=self.folder,
            step=progress.step,
        )
        screen.say(*_tracking_lines(tracker, self.state, journal.last_removed))
        # Into the state, so that checkpoints know it: a resume continues this run of W&B.
        self.state.run_id = tracker.run_id
        # The last file: where it is there, the run has begun.
        self.folder.write_json("plan.json", self.plan.as_dict() | {"derived": derived})
        return Outlets(
            folder=self.folder,
            journal=journal,
            screen=screen,
            tracker=tracker,
            columns=columns,
            tables=Tables(self.folder, screen, tracker),
            next_line=_next_line(self.loaded, self.folder.path),
            send_weights=_send_weights(self.loaded.config, tracker, self.folder),
            warned_of_slow_stop=warned_of_slow_stop,
        )

    def _open_screen(self, summary: Mapping[str, Any], lines: Sequence[str]) -> Screen:
        memory_gib = summary["device_memory_gib"]
        screen = Screen(self.plan.total_steps, _open_log(self.folder), memory_gib)
        self.opened.callback(_close_failed, screen)
        if self.folder.moved_to:
            screen.say(f"an earlier run of this name is now in {self.folder.moved_to}")
        outputs = f"outputs   {self.folder.path}"
        screen.say(*describe(self.plan), _model_line(summary), *lines, outputs)
        return screen

    def _say_resumed(self, screen: Screen) -> bool:
        """Print from where the run resumes; gives whether that included a warning of a slow
        stop.
        """
        if not self.folder.resumed_from:
            return False
        screen.say(
            f"resumed   from {self.folder.resumed_from}: step {self.state.progress.step:,} of "
            f"{self.plan.total_steps:,}"
        )
        # No step was timed yet: only what a save took before the stop is known.
        warning = slow_stop(0.0, self.state.last_save_seconds or 0.0)
        if warning:
            screen.say(warning)
        screen.say(*self.folder.changed)
        return bool(warning)

    def _open_tracker(self, run_config: Mapping[str, Any]) -> Tracker:
        tracker = Tracker.start(
            self.loaded.config.wandb,
            run_name=self.plan.name,
            default_group=self.loaded.path.stem,
            job_type="train",
            folder=self.folder.path,
            run_config=run_config,
            run_id=self.state.run_id,
        )
        self.opened.callback(_close_failed, tracker)
        return tracker

    def _open_journal(self) -> Journal:
        progress = self.state.progress
        path = self.folder.path / "metrics.jsonl"
        journal = Journal(path, progress.step, progress.evaluation_owed)
        self.opened.callback(_close_failed, journal)
        # It moves with the folder where that is displaced: rows go on in the copy.
        self.folder.follow("metrics.jsonl", journal.file)
        return journal


def _tracking_lines(tracker: Tracker, state: RunState, last_removed: int) -> list[str]:
    """Where the rows go. `last_removed`: the last step whose row an earlier start has written, and
    this one will write again.
    """
    lines = [f"W&B       {tracker.how_to_see}"]
    if tracker.unused_variables:
        lines.append(f"          {tracker.unused_variables}")
    # W&B takes no row back.
    if last_removed and tracker.run_id is not None and tracker.run_id == state.run_id:
        first = state.progress.step + 1
        steps = f"steps {first:,} to {last_removed:,}"
        if first == last_removed:
            steps = f"step {first:,}"
        lines.append(
            f"          has rows of {steps} from before, and gets them again; metrics.jsonl has "
            "each once"
        )
    return lines


def _send_weights(config: Config, tracker: Tracker, folder: RunFolder) -> Callable[[], str]:
    if config.wandb.log_model:
        return partial(log_model, tracker, folder.path / "final")
    # str() is the empty line.
    return str


def _derived(plan: RunPlan, folder: RunFolder) -> dict[str, Any]:
    """What the plan gives, and the hashes of all that the run was trained with since its first
    step.
    """
    segments = segments_of(plan, folder.resumed_from)
    return {**plan.derived(), **hashes(segments), "segments": segments}


def _write_first_files(folder: RunFolder, config: Any, surroundings: Mapping[str, Any]) -> None:
    """environment.json comes first: it is how a restart of the same job is recognised."""
    folder.write_json("environment.json", {**surroundings, "job": job_id()})
    folder.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    patch = git_patch()
    if patch:
        folder.write_text("git.patch", patch)


def _open_log(folder: RunFolder) -> TextIO:
    log_file = os.fdopen(open_own(folder.inside("log.txt")), "a", encoding="utf-8")
    folder.follow("log.txt", log_file)
    return log_file


def _close_failed(sink: Sink) -> None:
    # The error that brought us here is the one to report.
    with suppress(OSError):
        sink.finish(FAILED)


def _model_line(summary: Mapping[str, Any]) -> str:
    return (
        f"model     {summary['parameters']:,} parameters, {summary['parameters_gib']:.3g} GiB, on "
        f"{summary['device']} with {summary['device_memory_gib']:.3g} GiB"
    )


def _next_line(loaded: Loaded, folder: Path) -> str:
    if "--smoke" in loaded.flags:  # its folder is removed
        return ""
    evaluate = command("evaluate")
    executable = Path(sys.executable)  # not resolved: a virtual environment's python is a link
    if IS_CLONE and executable.is_relative_to(Path.cwd()):
        evaluate = f"{executable.relative_to(Path.cwd())} -m train.evaluate"
    config = loaded.config
    targets = {
        "model.target": config.model.target,
        "task.target": config.task.target,
        "data.source": config.data.source,
    }
    trust = " --trust" if needs_trust(targets, folder) else ""
    return f"next      {evaluate} {shlex.quote(str(folder))}{trust}"
