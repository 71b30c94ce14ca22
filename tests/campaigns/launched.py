"""Runs as users start them, a campaign that goes on where it was stopped, and what it writes into
docs/results/.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from train.comparison.run import Run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Launch:
    """Of ranks on the CPU, one thread each, by `accelerate launch`."""

    loop: str
    config: str
    name: str
    ranks: int
    overrides: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        launcher = ["--config_file", "configs/accelerate/ddp.yaml", "--main_process_port", "0"]
        # On a CPU, one rank by --multi_gpu is refused, and several by --cpu are one.
        launcher += [
            "--num_processes",
            str(self.ranks),
            "--cpu" if self.ranks == 1 else "--multi_gpu",
        ]
        program = [
            "-m",
            f"train.{self.loop}",
            self.config,
            f"name={self.name}",
            f"output_dir={folder}",
        ]
        return [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *launcher,
            *program,
            *self.overrides,
        ]

    def is_finished(self, folder: Path) -> bool:
        ended = folder / self.name / "ended.json"
        return ended.exists() and json.loads(ended.read_text())["reason"] == "finished"

    def run(self, folder: Path) -> None:
        """From its first step, also where it was stopped before its end: its times are then of one
        piece.
        """
        shutil.rmtree(folder / self.name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
        variables |= {
            "ISOBATCH_WORLD_SIZE": str(self.ranks),
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": str(ROOT),
        }
        log = folder / f"{self.name}.log"
        command, environment = self.command(folder), os.environ | variables
        with (
            log.open("w") as told,
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=told, stderr=told
            ) as process,
        ):
            try:
                code = process.wait()
            except KeyboardInterrupt:  # it has reached the ranks too, which end with a step
                process.wait()
                raise
        if code or not self.is_finished(folder):
            raise SystemExit(f"{self.name}: exit code {code}\n{log.read_text()[-2000:]}")


def run_all(launches: Sequence[tuple[Launch, Path]]) -> None:
    """Those that have not finished, in order; Ctrl-C stops, and the same call goes on."""
    for number, (launch, folder) in enumerate(launches, start=1):
        where = f"{number:>3} of {len(launches)}  {folder.name}/{launch.name}"
        if launch.is_finished(folder):
            print(f"{where}  has finished", flush=True)
            continue
        start = time.monotonic()
        try:
            launch.run(folder)
        except KeyboardInterrupt:
            raise SystemExit(f"{where}  stopped") from None
        print(f"{where}  {time.monotonic() - start:.0f} s", flush=True)


def write_between(page: Path, mark: str, text: str) -> None:
    """In the place of what stands between the two marks; at the end of a page that lacks them."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    page.parent.mkdir(parents=True, exist_ok=True)
    before = page.read_text() if page.exists() else ""
    if begin not in before:
        before = f"{before.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    head, rest = before.split(begin)
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def copy_small(source: Path, target: Path) -> None:
    """With as many colours as the eye can tell apart: a third of the size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE).save(
            target, optimize=True
        )


def commit_of(run: Run) -> str:
    """`1234567, 2026-11-24`: of its code, and when it began."""
    git = run.environment.get("git", {})
    dirty = "-dirty" if git.get("dirty") else ""
    return f"{git.get('commit', 'unknown')[:7]}{dirty}, {run.environment['started_at'][:10]}"
