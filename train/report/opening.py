"""Opens what rank 0 tells of a run: the files of its folder, the screen, the journal, the tracker."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from train.config import Loaded
from train.report.best import Best
from train.report.environment import environment, git_patch
from train.report.folder import RunFolder, job_id
from train.report.journal import Journal
from train.report.plan import RunPlan
from train.report.redact import redact, secret_values, secrets_in
from train.report.reporter import Reporter, Sink
from train.report.screen import Screen
from train.report.tracker import Tracker


def open_report(
    loaded: Loaded, plan: RunPlan, best: Best, folder: RunFolder, facts: Mapping[str, Any], lines: Sequence[str]
) -> Reporter:
    """Write down what is known before the first step, and say it; `facts` and `lines`: told by the learner.

    Nothing that looks like a secret is written, said or sent.
    """
    config = OmegaConf.to_container(OmegaConf.create(loaded.yaml()), resolve=False)
    secrets = secret_values(os.environ) | secrets_in(config)
    config = redact(config, secrets)
    surroundings = environment(sys.argv, loaded.path)
    derived = {**plan.derived(), **facts, "versions": surroundings["packages"]}
    folder.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    folder.write_json("plan.json", redact(plan.as_dict(), secrets) | {"derived": derived})
    folder.write_json("environment.json", surroundings | {"job": job_id()})
    patch = git_patch()
    if patch:
        folder.write_text("git.patch", patch)
    log_file = (folder.path / "log.txt").open("a", encoding="utf-8")
    screen = Screen(plan.total_steps, log_file, facts["device_memory_gib"])
    if folder.moved_to:
        screen.say(f"an earlier run of this name is now in {folder.moved_to}")
    told = (
        f"model     {facts['parameters']:,} parameters, {facts['parameters_gib']:.3g} GiB, on {facts['device']} "
        f"with {facts['device_memory_gib']:.3g} GiB"
    )
    screen.say(*plan.lines(), told, *lines, f"outputs   {folder.path}")
    tracker = Tracker.start(
        loaded.config.wandb,
        run_name=plan.name,
        default_group=loaded.path.stem,
        job_type="train",
        folder=folder.path,
        run_config={**config, "derived": derived, "environment": surroundings},
        secrets=secrets,
    )
    screen.say(f"W&B       {tracker.how_to_see}")
    sinks: list[Sink] = [Journal(folder.path / "metrics.jsonl"), screen, tracker]
    executable = Path(sys.executable)  # not resolved: a virtual environment's python is a link
    python = executable.relative_to(Path.cwd()) if executable.is_relative_to(Path.cwd()) else "python"
    evaluate = f"next      {python} -m train.evaluate {shlex.quote(str(folder.path))}"
    return Reporter(plan, best, sinks, folder, screen, tracker, secrets, "" if "--smoke" in loaded.flags else evaluate)
