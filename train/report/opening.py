"""Opens what rank 0 tells of a run: the files of its folder, the screen, the journal, the tracker."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from train.config import Loaded
from train.report.ending import FAILED
from train.report.environment import environment, git_patch
from train.report.folder import RunFolder, cannot_write
from train.report.journal import Journal
from train.report.redact import redact, secret_values, secrets_in
from train.report.reporter import Reporter
from train.report.restarts import job_id
from train.report.screen import Screen
from train.report.tables import Tables
from train.report.tracker import Tracker
from train.report.weights import log_model


def open_report(
    report: Reporter, loaded: Loaded, folder: RunFolder, facts: Mapping[str, Any], lines: Sequence[str]
) -> None:
    """Give rank 0's reporter somebody to tell, write down what is known before the first step, and say it.

    `facts` and `lines`: told by the learner. A report that goes on from a checkpoint continues rows and W&B run.

    Nothing that looks like a secret is written, said or sent. Raises FolderRefused where nothing can be written.
    """
    try:
        _open(report, loaded, folder, facts, lines)
    except BaseException as error:
        for sink in report.sinks:  # those that were open by then
            with suppress(OSError):
                sink.finish(FAILED)
        if isinstance(error, OSError):
            raise cannot_write(folder.path, error) from error
        raise


def _open(report: Reporter, loaded: Loaded, folder: RunFolder, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
    plan = report.plan
    config = OmegaConf.to_container(OmegaConf.create(loaded.yaml()), resolve=False)
    secrets = secret_values(os.environ) | secrets_in(config)
    config = redact(config, secrets)
    surroundings = environment(sys.argv, loaded.path)
    derived = {**plan.derived(), **facts, "versions": surroundings["packages"]}
    folder.write_json("environment.json", surroundings | {"job": job_id()})  # first: a restart is known by it
    folder.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    patch = git_patch()
    if patch:
        folder.write_text("git.patch", patch)
    log_file = (folder.path / "log.txt").open("a", encoding="utf-8")
    screen = Screen(plan.total_steps, log_file, facts["device_memory_gib"])
    report.sinks = [screen]
    if folder.moved_to:
        screen.say(f"an earlier run of this name is now in {folder.moved_to}")
    told = (
        f"model     {facts['parameters']:,} parameters, {facts['parameters_gib']:.3g} GiB, on {facts['device']} "
        f"with {facts['device_memory_gib']:.3g} GiB"
    )
    screen.say(*plan.lines(), told, *lines, f"outputs   {folder.path}", *_resumed(report, folder))
    tracker = Tracker.start(
        loaded.config.wandb,
        run_name=plan.name,
        default_group=loaded.path.stem,
        job_type="train",
        folder=folder.path,
        run_config={**config, "derived": derived, "environment": surroundings},
        run_id=report.run_id,
        secrets=secrets,
    )
    report.sinks = [screen, tracker]
    report.run_id = tracker.run_id
    screen.say(f"W&B       {tracker.how_to_see}")
    report.journal = Journal(folder.path / "metrics.jsonl", report.progress.step)
    report.sinks = [report.journal, screen, tracker]
    folder.write_json("plan.json", redact(plan.as_dict(), secrets) | {"derived": derived})  # last: now it has begun
    report.folder, report.screen, report.secrets = folder, screen, secrets
    executable = Path(sys.executable)  # not resolved: a virtual environment's python is a link
    python = executable.relative_to(Path.cwd()) if executable.is_relative_to(Path.cwd()) else "python"
    report.tracker = tracker
    report.tables = Tables(folder, screen, tracker)
    if loaded.config.wandb.log_model:
        report.finished = partial(log_model, tracker, folder.path / "final")
    report.next_line = (
        "" if "--smoke" in loaded.flags else f"next      {python} -m train.evaluate {shlex.quote(str(folder.path))}"
    )


def _resumed(report: Reporter, folder: RunFolder) -> list[str]:
    if not folder.resumed_from:
        return []
    lines = [f"resumed   from {folder.resumed_from}: step {report.progress.step:,} of {report.plan.total_steps:,}"]
    return [*lines, *report.slow_stop(), *folder.changed]
