"""What the scaffold costs: step times against a hand-written loop of the same work, side by side in one process.

OMP_NUM_THREADS=1 python -m tests.campaigns.bench [--pairs N]        prints a table for docs/results.md

The loops take turns, a block of steps each, so that a machine that slows down slows all of them; the ratio is taken
pair by pair. The A/A row pairs the hand-written loop with itself: it shows what this measurement
cannot resolve.
"""

import argparse
import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.helpers_cost import hand_written, making_run, ours

BLOCK_SECONDS = 0.15  # of optimizer steps, timed as one
SMALL = ("model.args.hidden=[256,256]",)
LARGE = ("model.args.hidden=[1536,1536,1536]",)  # a micro-step of 5 ms or more
ROWS = {
    "hand-written, again (A/A)": (hand_written, ("log.every_steps=1000000",)),
    "ours, no rows": (ours, ("log.every_steps=1000000",)),
    "ours, a row every 10 steps": (ours, ("log.every_steps=10",)),
}


def seconds_per_step(steps: Iterator[None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - start) / count


def measure(model: tuple[str, ...], accumulation_steps: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def start(name: str, overrides: tuple[str, ...]) -> Iterator[None]:
            kind = ROWS[name][0] if name in ROWS else hand_written
            run = stack.enter_context(making_run(Path(folder) / name, accumulation_steps, *model, *overrides))
            return kind(run)

        base = start("hand-written", ("log.every_steps=1000000",))
        others = {name: start(name, overrides) for name, (_, overrides) in ROWS.items()}
        for steps in (base, *others.values()):
            seconds_per_step(steps, 25)  # warm-up
        # At least as many steps as there are between two rows, and a multiple of it.
        count = 10 * max(1, round(BLOCK_SECONDS / seconds_per_step(base, 10) / 10))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
        for pair in range(pairs):
            for name, steps in others.items():
                first, second = (base, steps) if pair % 2 else (steps, base)
                one, two = seconds_per_step(first, count), seconds_per_step(second, count)
                times[name].append((one, two) if pair % 2 else (two, one))
    for name, measured in times.items():
        hand = statistics.median(a for a, _ in measured) / accumulation_steps
        ratios = sorted(b / a for a, b in measured)
        over = statistics.median(b - a for a, b in measured) / accumulation_steps
        quarter = len(ratios) // 4
        cells = [
            model[0].partition("=")[2],
            accumulation_steps,
            f"{hand * 1e3:.2f}",
            name,
            f"{statistics.median(ratios):.3f}",
            f"{ratios[quarter]:.3f} - {ratios[-1 - quarter]:.3f}",
            f"{over * 1e6:.0f}",
        ]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Step times against a hand-written loop of the same work.")
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {pairs} pairs of blocks\n")
    print("| hidden | accumulation | by hand, ms per micro-step | row | ratio | quartiles | us over per micro-step |")
    print("|---|---|---|---|---|---|---|")
    for model in (SMALL, LARGE):
        for accumulation_steps in (1, 4):
            measure(model, accumulation_steps, pairs)


if __name__ == "__main__":
    main()
