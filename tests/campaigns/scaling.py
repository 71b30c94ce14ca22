"""Trajectories under the scaling rules against their base run: what a rule promises, as far as it
holds.

OMP_NUM_THREADS=1 python -m tests.campaigns.scaling        prints tables for docs/results/noise.md

Linear regression on 64 features whose variances fall as 1/i, targets with noise; evaluated without
it, so that the loss is the distance to the optimum. The base run takes 16 samples a step; others
take kappa times as many, their numbers moved by a rule, through the whole scaffold. A figure is the
root mean square, over 16 evaluations at the same samples seen, of the difference in log eval/loss,
each a mean over seeds.
"""

import contextlib
import io
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset

from tests.helpers import rows
from train.accumulate import compute_gradient
from train.main import main

BASE = 16
KAPPAS = (4, 16)
SEEDS = range(4)
POINTS = 16
CONFIG = """
batch: {effective: 16, micro: 4}
data: {source: tests.campaigns.scaling.lines, eval_split: test}
model: {target: mlp, args: {inputs: 64, hidden: [], outputs: 1}}
task: regression
schedule: {name: constant}
duration: {samples: 16384}
evaluate: {every_samples: 1024}
log: {every_steps: 64}
checkpoint: {every_steps: 1000000, resume: never}
noise_scale: {every_steps: 5}
wandb: {mode: disabled}
"""
OPTIMIZERS = {
    "sgd": ("optimizer={target: sgd, lr: 0.004}", ("none", "sqrt", "linear", "noise")),
    "adam": ("optimizer={target: adam, lr: 0.001}", ("none", "linear", "sqrt", "sde", "noise")),
}
NOISES = {"much noise": 3.0, "little noise": 0.1}


def lines(noise: float = 1.0, size: int = 16384) -> dict[str, Dataset]:
    random = np.random.default_rng(0)
    deviations = 1 / np.sqrt(np.arange(1, 65))
    slopes = random.normal(size=64)

    def some(count: int, spread: float) -> Dataset:
        inputs = random.normal(size=(count, 64)) * deviations
        targets = inputs @ slopes + spread * random.normal(size=count)
        return Dataset.from_dict(
            {"inputs": inputs.astype(np.float32), "targets": targets[:, None].astype(np.float32)}
        )

    return {"train": some(size, noise), "test": some(1024, 0.0)}


def run(folder: Path, *overrides: str) -> tuple[list[float], float | None]:
    """(log eval/loss at each evaluation, the last noise scale)."""
    config = folder / "scaling.yaml"
    config.write_text(CONFIG)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = [str(config), f"output_dir={folder}", "name=run", *overrides]
        assert main(arguments, "accumulate", compute_gradient) == 0
    noise = [row["batch/noise_scale"] for row in rows(folder, "batch/noise_scale")]
    losses = [math.log(row["eval/loss"]) for row in rows(folder, "eval/loss")]
    assert len(losses) == POINTS
    return losses, noise[-1] if noise else None


def apart(ones: list[list[float]], others: list[list[float]]) -> float:
    one, other = (np.mean(each, axis=0) for each in (ones, others))
    return float(np.sqrt(np.mean((one - other) ** 2)))


def table(folder: Path, name: str, noise: float) -> None:
    optimizer, rules = OPTIMIZERS[name]
    data = f"data.args.noise={noise}"
    base, scales = [], []
    for seed in SEEDS:
        losses, scale = run(folder, optimizer, data, f"seed={seed}")
        base.append(losses)
        scales += [] if scale is None else [scale]
    spread = float(np.sqrt(np.mean(np.var(base, axis=0, ddof=1))))
    known = f"{statistics.median(scales):,.0f} samples" if scales else "not resolved"
    print(f"\n{name}, noise {noise}: seed to seed {spread:.3f}; noise scale {known}")
    print("| kappa | " + " | ".join(rules) + " |")
    for kappa in KAPPAS:
        figures = []
        for rule in rules:
            if rule == "noise" and not scales:
                figures.append("-")
                continue
            given = [
                f"batch.effective={BASE * kappa}",
                f"optimizer.lr_scaling={rule}",
                "optimizer.lr_reference_batch=16",
            ]
            if rule == "noise":
                given.append(f"optimizer.noise_scale={statistics.median(scales)}")
            runs = [run(folder, optimizer, data, f"seed={seed}", *given)[0] for seed in SEEDS]
            figures.append(f"{apart(runs, base):.3f}")
        print(f"| {kappa} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for amount in NOISES.values():
            for each in OPTIMIZERS:
                table(Path(place), each, amount)
