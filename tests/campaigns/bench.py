"""What the scaffold costs: the same training by other loops, side by side in one process; start-up
and peak memory.

OMP_NUM_THREADS=1 python -m tests.campaigns.bench [--quick] [--models tiny] [--beside-other-work]  #
docs/benchmark.md

About 20 minutes on two quiet cores; --quick takes one to two, prints, and writes nothing. It uses a
GPU where there is one (two ranks need two). The loops take turns, a block of steps each, so that a
machine that slows down slows all of them; figures are paired turn by turn with those of the
hand-written loop. The row A/A is that loop against itself: what is smaller than it is no
difference.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.bench_bars import bars
from tests.campaigns.bench_fresh import KINDS
from tests.campaigns.bench_tables import (
    Cell,
    counts_table,
    draw,
    fresh_table,
    parts_table,
    times_table,
)
from tests.campaigns.bench_work import WORKS, write_config, write_data
from tests.campaigns.launched import ROOT, write_between
from tests.conftest import free_port, rank_environment

PAGE = ROOT / "docs" / "benchmark.md"
PICTURE = ROOT / "docs" / "pictures" / "benchmark.png"
ACCUMULATION = (1, 4, 16)
RANKS = (1, 2)
FRESH = 5  # processes of each kind


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """One process has no launcher: nothing it does goes to other ranks."""
    own = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    own |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    if ranks > 1:
        own |= rank_environment(rank, ranks, port)
    return own | {"ACCELERATE_USE_CPU": str(torch.cuda.device_count() < ranks).lower()}


def run_all(module: str, arguments: list[str], ranks: int, log: Path) -> None:
    port = free_port()
    with log.open("w") as told:
        started = []
        for rank in range(ranks):
            command = [sys.executable, "-m", module, *arguments]
            own = environment(rank, ranks, port)
            started.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=told, stderr=told))
        codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(
            f"{module} {' '.join(arguments)}: exit codes {codes}\n{log.read_text()[-3000:]}"
        )


def measure_cell(name: str, ranks: int, accumulation_steps: int, turns: int, folder: Path) -> Cell:
    own = folder / f"{name}-{ranks}-{accumulation_steps}"
    own.mkdir()
    data, config, out = own / "data.parquet", own / "config.yaml", own / "out.json"
    write_data(name, data)
    write_config(name, data, config)
    start = time.monotonic()
    arguments = [str(out), name, str(accumulation_steps), str(turns), str(data), str(config)]
    run_all("tests.campaigns.bench_cell", arguments, ranks, own / "log.txt")
    print(
        f"{name}, {ranks} rank(s), accumulation {accumulation_steps}: "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    return Cell(name, ranks, accumulation_steps, json.loads(out.read_text()))


def measure_fresh(name: str, repeats: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """In turns, too."""
    own = folder / f"fresh-{name}"
    own.mkdir()
    data, config, out = own / "data.parquet", own / "config.yaml", own / "out.json"
    write_data(name, data)
    write_config(name, data, config)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for turn in range(repeats + 1):  # the first fills caches of files, and does not count
        for kind in KINDS:
            run_all(
                "tests.campaigns.bench_fresh",
                [str(out), kind, name, str(data), str(config)],
                1,
                own / "log.txt",
            )
            if turn:
                found[kind].append(json.loads(out.read_text()))
    return found


def machine(beside: bool) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "datasets"))
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    others = (
        " **Measured beside other work on the same cores: see the A/A rows.**" if beside else ""
    )
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device}, one thread a rank; Python "
        f"{platform.python_version()}, {versions}; commit {commit}, "
        f"{time.strftime('%d %B %Y')}.{others}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Step times, start-up and memory beside other loops of the same work."
    )
    parser.add_argument(
        "--quick", action="store_true", help="the tiny network, fewer turns; writes nothing"
    )
    parser.add_argument("--beside-other-work", action="store_true", help="say so on the page")
    parser.add_argument("--models", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    names = ["tiny"] if options.quick else options.models
    accumulation = ACCUMULATION[:2] if options.quick else ACCUMULATION
    cells, fresh = [], {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in names:
            turns = 6 if options.quick else WORKS[name].turns
            for ranks in RANKS:
                for steps in accumulation:
                    cells.append(measure_cell(name, ranks, steps, turns, Path(folder)))
            fresh[name] = measure_fresh(name, 1 if options.quick else FRESH, Path(folder))
    tables = [
        machine(options.beside_other_work),
        "### Bars",
        bars(cells, fresh),
        "### Time of an optimizer step",
        *(times_table(name, cells) for name in names),
        "### What a step does",
        *(counts_table(name, cells) for name in names),
        "### Start-up and memory",
        *(fresh_table(name, fresh[name]) for name in names),
        parts_table(fresh[names[0]]),
    ]
    if options.quick:
        print("\n\n".join(tables))
        return
    draw(cells, PICTURE)
    write_between(PAGE, "benchmark", "\n\n".join(tables))
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
