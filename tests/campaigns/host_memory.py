"""Host memory by the number of micro-batches in a step: what the samples of one take, beside a run
of one micro-batch.

OMP_NUM_THREADS=1 python -m tests.campaigns.host_memory        prints a table for docs/results/memory.md

Each figure is of a process of its own, which trains three steps: the peak of its own memory,
without the pages of files and what it shares, and the most that lay in shared memory meanwhile.
Images of 3 x 224 x 224: 0.57 MiB as float32 or 0.14 MiB as they are stored; a micro-batch holds 3.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from torch import Tensor, nn

from train.batch.window import Batch
from train.tasks.classification import Classification

ROOT = Path(__file__).parents[2]
SHARED = "/dev/shm"
HERE = "tests.campaigns.host_memory"
SIDE = 224
MICRO = 3
COUNTS = (1, 16, 64)
FEATURES = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})


@dataclass(frozen=True)
class Case:
    name: str
    overrides: tuple[str, ...]


CASES = (
    Case("from the disk, no workers", ("data.preload=false", "data.workers=0")),
    Case("from the disk, 2 workers", ("data.preload=false", "data.workers=2")),
    Case("a transform to float32, no workers", (f"data.transform={HERE}.floats", "data.workers=0")),
    Case("a transform to float32, 2 workers", (f"data.transform={HERE}.floats", "data.workers=2")),
    Case("in memory", ("data.preload=true",)),
    Case(
        "a stream",
        (
            f"data={{source: {HERE}.stream, streaming: true, shuffle_buffer: 0, args: {{size: "
            "600}}",
        ),
    ),
    Case("in memory, a task of the user's", ("data.preload=true", f"task={HERE}.Plain")),
)


def pictures(size: int) -> Dataset:
    return Dataset.from_generator(made, gen_kwargs={"size": size}, features=FEATURES)


def made(size: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    for i in range(size):
        yield {"image": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), "label": i % 2}


def stream(size: int) -> IterableDataset:
    return pictures(size).to_iterable_dataset()


def floats(sample: Batch, generator: torch.Generator) -> Batch:
    return sample | {"inputs": sample["inputs"] * 2 - 1}


class Small(nn.Module):
    """So that activations are none of the memory that is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs.mean((2, 3)))
        return logits


class Plain(Classification):
    """It does not say which columns its weights are counted from."""

    def loss_weight(self, batch: Batch) -> float:
        return float(len(batch["labels"]))


def peaks(case: Case, count: int, cache: Path) -> tuple[float, float]:
    """(of its own, shared), MiB"""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text("name: run\ntask: classification\n")
        words = [
            f"data.source={HERE}.pictures",
            "data.args.size=600",
            "data.columns={inputs: image, labels: label}",
        ]
        words += [
            f"model={HERE}.Small",
            "optimizer={target: sgd, lr: 0.1}",
            "duration.steps=3",
            "wandb.mode=disabled",
        ]
        words += [
            f"output_dir={folder}",
            f"batch={{effective: {MICRO * count}, micro: {MICRO}}}",
            "noise_scale.every_steps=0",
        ]
        words += ["data.eval_fraction=0", "checkpoint.every_steps=1000", *case.overrides]
        environment = os.environ | {
            "HF_DATASETS_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "train.accumulate", str(config), *words]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        ) as process:
            own, shared = watched(process)
        if process.returncode:
            raise SystemExit(f"{case.name}, {count} micro-batches: exit code {process.returncode}")
    return own, shared


def watched(process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    before = psutil.disk_usage(SHARED).used
    most = most_shared = 0.0
    rank = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            memory = rank.memory_info()
            most = max(most, (memory.rss - memory.shared) / 2**20)
        except psutil.Error:
            break
        most_shared = max(most_shared, (psutil.disk_usage(SHARED).used - before) / 2**20)
        time.sleep(0.002)
    process.wait()
    return most, most_shared


def main() -> None:
    argparse.ArgumentParser(
        description="Host memory by the number of micro-batches in a step."
    ).parse_args()
    head = [
        "samples",
        *(f"{count} x {MICRO}" for count in COUNTS),
        "more for 64 than for 1",
        "shared memory, at 64",
    ]
    print("|", " | ".join(head), "|\n" + "|---" * len(head) + "|")
    with tempfile.TemporaryDirectory() as cache:
        for case in CASES:
            found = [peaks(case, count, Path(cache)) for count in COUNTS]
            cells = [case.name, *(f"{own:,.0f}" for own, _ in found)]
            cells += [f"{found[-1][0] - found[0][0]:+,.0f} MiB", f"{found[-1][1]:,.0f} MiB"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
