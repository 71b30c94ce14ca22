"""The noise scale against the analytic truth of a linear regression (790 samples), and what
measuring it costs.

OMP_NUM_THREADS=1 python -m tests.campaigns.noise_scale [--repeats N] [--pairs N]     prints tables
for docs/results/noise.md

Parameters are fixed. The first table draws gradients in numpy, the second trains for 1,000 steps of
64 samples through the real loop (learning rate 1e-12), the third pairs blocks of steps of runs that
differ in noise_scale.every_steps.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import run_ranks
from tests.helpers import CONFIG
from tests.helpers_cost import making_run, ours
from tests.helpers_noise import TRUTH, Naive, simulate
from train import metric_names as names
from train.accumulate import compute_gradient
from train.comparison.critical_batch import Averages
from train.main import main as train

STEPS = (10, 30, 100, 300, 1000)
SMALL = ("model.args.hidden=[256,256]",)
LARGE = ("model.args.hidden=[1536,1536,1536]",)  # a micro-step of 5 ms or more
REAL = (
    "data.source=tests.helpers_noise.gaussian",
    "model={target: tests.helpers_noise.Displaced, args: {}}",
    "task=tests.helpers.Regression",
    "optimizer.lr=1e-12",
    "precision=fp32",
    "log.every_steps=1000",
    "batch.effective=64",
    "duration.steps=1000",
)


def errors_of(job: tuple[int, str]) -> dict[tuple[str, int], float]:
    """{(estimator, steps): relative error}; NaN where it says unknown."""
    seed, kind = job
    found = {}
    for steps in STEPS:
        averages, naive, ratios = (
            Averages(),
            Naive(ratio_of_each_step=False),
            Naive(ratio_of_each_step=True),
        )
        simulate(seed, steps, kind, [averages, naive, ratios])
        estimate = averages.noise_scale()
        found["ours", steps] = estimate.value / TRUTH - 1 if estimate else np.nan
        found["m = N / K", steps] = naive.noise_scale() / TRUTH - 1
        found["mean of ratios", steps] = ratios.noise_scale() / TRUTH - 1
    return found


def simulated(repeats: int) -> None:
    print(f"| micro-batches | estimator | {' | '.join(f'{steps:,} steps' for steps in STEPS)} |")
    print("|---|---|" + "---|" * len(STEPS))
    for kind, words in (("equal", "8 of 8"), ("unequal", "8 of 1 to 31")):
        with multiprocessing.Pool(2) as pool:
            found = pool.map(errors_of, [(seed, kind) for seed in range(repeats)])
        for estimator in ("ours", "m = N / K", "mean of ratios"):
            cells = []
            for steps in STEPS:
                errors = np.abs([each[estimator, steps] for each in found])
                known = errors[~np.isnan(errors)]
                if not len(known):
                    cells.append("unknown")
                    continue
                unknown = f", {np.isnan(errors).mean():.0%} unknown" if len(known) < repeats else ""
                cells.append(f"{np.median(known):.0%} (worst {known.max():.0%}{unknown})")
            print(f"| {words} | {estimator} | {' | '.join(cells)} |", flush=True)


def last_row(arguments: list[str]) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(arguments, "accumulate", compute_gradient) == 0
    folder = (
        Path(next(a for a in arguments if a.startswith("output_dir=")).partition("=")[2]) / "run"
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows[-1]


def real(repeats: int) -> None:
    print(
        "\n| ranks | micro-batches of a step | median error | worst | noise scale of the last rows "
        "|"
    )
    print("|---|---|---|---|---|")
    for world_size, micro, words in (
        (1, 8, "8 of 8"),
        (1, 7, "9 of 7 and one of 1"),
        (2, 5, "7 a rank, 6 of 5 and one of 2"),
    ):
        values = []
        for seed in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                config = Path(folder) / "tiny.yaml"
                config.write_text(CONFIG)
                arguments = [str(config), f"output_dir={folder}", *REAL, f"batch.micro={micro}"]
                arguments += [
                    "noise_scale.every_steps=1",
                    f"data.args={{size: 64000, seed: {seed}}}",
                ]
                values.append(
                    run_ranks(world_size, last_row, arguments)[0].get(names.NOISE_SCALE, np.nan)
                )
        errors = np.abs(np.array(values) / TRUTH - 1)
        shown = ", ".join(f"{value:.0f}" for value in values)
        print(
            f"| {world_size} | {words} | {np.median(errors):.1%} | {errors.max():.1%} | {shown} |",
            flush=True,
        )


def seconds_per_step(steps: Iterator[None], count: int) -> float:
    """Of the processor, on one thread: what others do on the machine counts less than by the clock."""
    start = time.process_time()
    for _ in range(count):
        next(steps)
    return (time.process_time() - start) / count


def cost(pairs: int) -> None:
    print(
        "\n| hidden | accumulation | off, ms per step | noise_scale.every_steps | ratio | "
        "quartiles |"
    )
    print("|---|---|---|---|---|---|")
    for model in (SMALL, LARGE):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

            def start(name: str, every: int, model: tuple[str, ...] = model) -> Iterator[None]:
                overrides = (*model, "log.every_steps=1000000", f"noise_scale.every_steps={every}")
                run = making_run(Path(folder) / name, 4, *overrides)
                return ours(stack.enter_context(run))

            base = start("off", 0)
            others = {
                "0, again (A/A)": start("again", 0),
                "20 (default)": start("twenty", 20),
                "1": start("one", 1),
            }
            for steps in (base, *others.values()):
                seconds_per_step(steps, 25)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
            for pair in range(pairs):
                for name, steps in others.items():
                    first, second = (base, steps) if pair % 2 else (steps, base)
                    one, two = seconds_per_step(first, 20), seconds_per_step(second, 20)
                    times[name].append((one, two) if pair % 2 else (two, one))
        for name, measured in times.items():
            ratios = sorted(b / a for a, b in measured)
            quarter, off = len(ratios) // 4, statistics.median(a for a, _ in measured)
            cells = (
                model[0].partition("=")[2],
                4,
                f"{off * 1e3:.2f}",
                name,
                f"{statistics.median(ratios):.3f}",
            )
            print(
                "|",
                " | ".join(map(str, cells)),
                f"| {ratios[quarter]:.3f} - {ratios[-1 - quarter]:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The noise scale against a known truth, and its cost."
    )
    parser.add_argument("--repeats", type=int, default=20, help="0: the cost only")
    parser.add_argument("--pairs", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.repeats:
        simulated(asked.repeats)
        real(max(1, asked.repeats // 4))
    cost(asked.pairs)


if __name__ == "__main__":
    main()
