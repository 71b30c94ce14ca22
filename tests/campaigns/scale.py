"""What it costs a rank to know its samples of a step, by number of ranks and size of the data.

OMP_NUM_THREADS=1 python -m tests.campaigns.scale [--before COMMIT]        prints the table of docs/results.md

64 samples a rank and step, 2,000 steps one after the other, on the rank in the middle. `--before`: the same in the code
of another commit as well, in a process of its own, in turns. The best of three is printed.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from train.batch import assign, make_plan

ROOT = Path(__file__).parents[2]
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
    lines = subprocess.run(command, env=environment, cwd=package, check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in lines.splitlines()]
    return {(int(ranks), int(size)): float(cost) for ranks, size, cost in rows}


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
            archive = subprocess.check_output(["git", "archive", arguments.before, "train"], cwd=ROOT)
            with tarfile.open(fileobj=io.BytesIO(archive)) as package:
                package.extractall(folder, filter="data")
            places = {f"commit {arguments.before}": Path(folder)} | places
        turns = [{name: measured_in(place) for name, place in places.items()} for _ in range(TURNS)]
    print(f"| samples | ranks | {' | '.join(places)} |")
    for ranks, size in turns[0]["now"]:
        best = [min(turn[name][ranks, size] for turn in turns) for name in places]
        print(f"| {size:.0e} | {ranks:,} | {' | '.join(f'{cost:,.0f} us' for cost in best)} |")


if __name__ == "__main__":
    main()
