"""Two loops that do the same work: ours, and what one would write by hand for one machine."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import torch

from train.accumulate import compute_gradient
from train.config import load
from train.run import Run, build
from train.step import update

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def making_run(folder: Path, accumulation_steps: int, *overrides: str) -> Iterator[Run]:
    argv = [
        str(ROOT / "configs" / "digits.yaml"),
        f"output_dir={folder}",
        "checkpoint.resume=never",
        "wandb.mode=disabled",
        "duration.steps=1000000",
        "batch.effective=64",
        "evaluate.every_steps=1000000",
        f"batch.accumulation_steps={accumulation_steps}",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run = build(load([*argv, *overrides]), "accumulate")
        yield run
        run.report.close("measured", 0)


def hand_written(run: Run) -> Iterator[None]:
    """Batches are in memory, and cut, beforehand; everything else is the loop of the tutorials."""
    windows = iter(run.windows)
    batches = [[m.batch for m in next(windows).micro_batches] for _ in range(22)]
    model, optimizer, parameters = run.learner.module, run.learner.optimizer, run.learner.parameters
    while True:
        for window in batches:
            samples = sum(len(batch["labels"]) for batch in window)
            for batch in window:
                logits = model(batch["inputs"])
                loss = (
                    torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
                    / samples
                )
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield


def ours(run: Run) -> Iterator[None]:
    """train.loop.fit, one step at a time."""
    gradient = run.watch(compute_gradient)
    for window in run.windows:
        losses = gradient(run.learner, window)
        norm = update(run.learner, run.plan.rate.at(window.k, window.seen))
        with contextlib.redirect_stdout(io.StringIO()):
            run.after_step(window, losses, norm)
        yield
