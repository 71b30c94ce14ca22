"""What it costs a rank to know its samples of a step, by number of ranks and size of the data; what
compare needs.

OMP_NUM_THREADS=1 python -m tests.campaigns.scale [--before COMMIT]        prints the table of
docs/results/scale.md

64 samples a rank and step, 2,000 steps one after the other, on the rank in the middle. `--before`:
the same in the code of another commit as well, in a process of its own, in turns. The best of three
is printed. Then `compare` of 50 runs of 10,000 rows of 26 metrics each, ten set-ups of five seeds,
as text.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.comparison.folders import make_run
from train.batch import assign, make_plan

ROOT = Path(__file__).parents[2]
RUNS, SEEDS, ROWS = 50, 5, 10_000
CHANGING = [f"{part}/changing_{n}" for part in ("train", "time", "throughput") for n in range(4)]
CHANGING += ["time/step_seconds", "memory/peak_rss_gib"]
FIXED = [f"batch/fixed_{n}" for n in range(7)]
SHARE = 64
STEPS = 2000
TURNS = 3


def microseconds_per_step(ranks: int, size: int) -> float:
    plan = make_plan(ranks * SHARE, "all", None, world_size=ranks, dataset_size=size)
    assert plan.steps_per_epoch is not None
    start = time.perf_counter()
    for k in range(STEPS):
        epoch, step = divmod(k, plan.steps_per_epoch)
        assign(plan, 0, epoch, step * plan.effective, ranks // 2)
    return (time.perf_counter() - start) / STEPS * 1e6


def measured_in(package: Path) -> dict[tuple[int, int], float]:
    """(ranks, size) -> microseconds, by the package `train` that lies in this folder."""
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    lines = subprocess.run(
        command, env=environment, cwd=package, check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in lines.splitlines()]
    return {(int(ranks), int(size)): float(cost) for ranks, size, cost in rows}


def make_runs(parent: Path) -> None:
    for number in range(RUNS):
        setup, seed = divmod(number, SEEDS)
        chance = random.Random(number)
        folder = make_run(
            parent / f"lr{setup}-seed{seed}",
            identity={"seed": seed, "optimizer.lr": 0.01 * (setup + 1)},
            derived={"effective_batch": 100},
            last=100,
            every=100,
        )
        hours = 0.0
        with (folder / "metrics.jsonl").open("w") as file:
            for k in range(1, ROWS + 1):
                hours += 1e-4 * (1 + chance.random())
                place = {
                    "train/global_step": k,
                    "progress/samples_seen": 100 * k,
                    "progress/hours": hours,
                }
                loss = 2 / (1 + k / 500) + 0.05 * chance.random()
                changing = {metric: chance.random() for metric in CHANGING}
                row = (
                    place
                    | {"train/learning_rate": 0.01, "train/loss": loss}
                    | changing
                    | dict.fromkeys(FIXED, 1)
                )
                file.write(json.dumps(row) + "\n")
                if k % 100 == 0:
                    evaluated = {
                        "eval/loss": loss,
                        "eval/accuracy": chance.random(),
                        "eval/samples": 100.0,
                    }
                    file.write(json.dumps(place | evaluated) + "\n")


def compared(package: Path, runs: Path) -> tuple[str, str]:
    """(seconds and MB, the text) of one comparison."""
    code = "import resource, sys; from train.compare import main; main(sys.argv[1:]); "
    code += "used = resource.getrusage(resource.RUSAGE_SELF); "
    code += "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(package)}
    start = time.perf_counter()
    command = [sys.executable, "-c", code, str(runs)]
    done = subprocess.run(
        command, env=environment, cwd=package, check=True, capture_output=True, text=True
    )
    processor, peak = map(float, done.stderr.split()[-2:])
    return (
        f"{time.perf_counter() - start:.1f} s ({processor:.1f} s of a processor) | {peak:,.0f} MB",
        done.stdout,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before")
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        for size in (10**4, 10**7, 10**10):
            for ranks in (1, 64, 4096):
                print(ranks, size, microseconds_per_step(ranks, size))
        return
    with tempfile.TemporaryDirectory() as folder:
        places = {"now": ROOT}
        if arguments.before:
            archive = subprocess.check_output(
                ["git", "archive", arguments.before, "train"], cwd=ROOT
            )
            with tarfile.open(fileobj=io.BytesIO(archive)) as package:
                package.extractall(folder, filter="data")
            places = {f"commit {arguments.before}": Path(folder)} | places
        (Path(folder) / "runs").mkdir()
        make_runs(Path(folder) / "runs")
        comparisons = {
            name: compared(place, Path(folder) / "runs") for name, place in places.items()
        }
        turns = [{name: measured_in(place) for name, place in places.items()} for _ in range(TURNS)]
    print(f"| samples | ranks | {' | '.join(places)} |")
    for ranks, size in turns[0]["now"]:
        best = [min(turn[name][ranks, size] for turn in turns) for name in places]
        print(f"| {size:.0e} | {ranks:,} | {' | '.join(f'{cost:,.0f} us' for cost in best)} |")
    for name, (cost, text) in comparisons.items():
        same = "the same text" if text == comparisons["now"][1] else "ANOTHER TEXT"
        print(f"| compare, {name} | {cost} | {same} |")


if __name__ == "__main__":
    main()
