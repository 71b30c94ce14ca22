"""What length-aware windows save on texts as they are: tokens computed, and time, beside the usual ways of padding.

OMP_NUM_THREADS=1 python -m tests.campaigns.lengths [--epochs N]        prints tables for docs/results.md

Two distributions: the lines of configs/data/manual.csv, and whole documents, the topics of Python's documentation.
Three ways, each with room for as many tokens at once: texts filled up to data.max_length; micro-batches of the order of
the data, each cut to its longest text; batch.micro_tokens. In the second table each step is taken three times, once in
each way, one after the other in one process; the ratio is that of an epoch's processor time on one thread.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from datasets import Dataset

from tests.helpers_cost import ours
from train.batch import Assignment, BatchPlan
from train.batch.window import Place
from train.config import load
from train.data import ByLength, open_sets
from train.data.python_docs import python_docs
from train.data.shares import assignments
from train.plan.steps import plan_batch
from train.run import Run, build

ROOT = Path(__file__).parents[2]
BERT = "configs/finetune.yaml"
CONV = "configs/text.yaml"
DOCUMENTS = "data={source: tests.campaigns.lengths.documents, columns: {inputs: text, labels: kind}}"
WAYS = ("all filled up", "cut, in the order of the data", "by length")


@dataclass(frozen=True)
class Case:
    name: str
    config: str
    max_length: int
    effective: int
    micro: int  # texts of max_length that there is room for at once
    overrides: tuple[str, ...] = ()


LINES = [Case("lines", CONV, 80, 32, micro) for micro in (16, 8, 4)]
TOPICS = [Case("documents", CONV, 4096, 16, micro, (DOCUMENTS,)) for micro in (8, 4, 2)]
TIMED = [
    Case("lines, text_conv", CONV, 80, 32, 8),
    Case("lines, bert", BERT, 80, 32, 8),
    Case("documents, text_conv", CONV, 4096, 16, 4, (DOCUMENTS,)),
    Case("documents, bert", BERT, 512, 16, 4, (DOCUMENTS,)),
]


def documents() -> Dataset:
    """The topics, and for a label whether a topic stands in the first half of the alphabet."""
    data = python_docs()
    return data.add_column("kind", [int(topic < "m") for topic in data["topic"]])


class InOrder(ByLength):
    """Texts that are cut, but not sorted."""

    def _dealt(
        self, plan: BatchPlan, seed: int, rank: int, place: Place, overfit: int | None
    ) -> Iterator[tuple[int, Assignment]]:
        return assignments(plan, seed, rank, place, overfit)


def arguments(case: Case, way: str) -> list[str]:
    room = f"batch.micro={case.micro}" if way == WAYS[0] else f"batch.micro_tokens={case.micro * case.max_length}"
    given = [str(ROOT / case.config), *case.overrides, f"data.max_length={case.max_length}", room]
    given += [f"batch.effective={case.effective}", "data.eval_fraction=0", "evaluate.best=null", "name=run"]
    given += ["checkpoint.resume=never", "wandb.mode=disabled", "duration.steps=1000000"]
    return [*given, "log.every_steps=1000000", "noise_scale.every_steps=0"]


def in_this_way(way: str) -> contextlib.AbstractContextManager[object]:
    return mock.patch("train.data.by_length.ByLength", InOrder if way == WAYS[1] else ByLength)


def computed(case: Case, way: str, ranks: int) -> tuple[int, int, float, int]:
    """(tokens that are computed in an epoch, those of the busiest rank of each step, micro-steps per step, the most
    tokens at once)"""
    config = load(arguments(case, way)).config
    with in_this_way(way):
        train = open_sets(config, ("inputs", "labels")).train
    plan = plan_batch(config, "accumulate", ranks, train.size)
    assert plan.steps_per_epoch is not None
    micro_steps = []
    sums = []  # [rank][step]
    largest = 0
    for rank in range(ranks):
        sums.append([0] * plan.steps_per_epoch)
        for k, part in enumerate(islice(train.shares(plan, config.seed, rank, Place(), None), plan.steps_per_epoch)):
            sizes = [micro_batch.batch["inputs"].numel() for micro_batch in part]
            micro_steps.append(len(sizes))
            largest = max(largest, *sizes)
            sums[rank][k] = sum(sizes)
    busiest = sum(map(max, zip(*sums, strict=True)))
    return sum(map(sum, sums)), busiest, statistics.fmean(micro_steps), largest


def tokens(cases: list[Case]) -> None:
    head = ("texts", "tokens at once, at most", "ranks", *WAYS, "padding left", "micro-steps per step", "busiest rank")
    print("|", " | ".join(head), "|\n" + "|---" * len(head) + "|")
    for case in cases:
        train = open_sets(load(arguments(case, WAYS[2])).config, ("inputs", "labels")).train
        assert isinstance(train, ByLength)
        real, room = int(train.lengths.sum()), case.micro * case.max_length
        for ranks in (1, 2):
            found = [computed(case, way, ranks) for way in WAYS]
            sums, busiest, micro_steps, largest = zip(*found, strict=True)
            assert max(largest) <= room
            cells = [f"{case.name}, {case.max_length:,}", f"{room:,}", ranks, f"{sums[0]:,}"]
            cells += [f"{sums[1] / sums[0]:.0%}", f"{sums[2] / sums[0]:.0%}"]
            cells.append(", ".join(f"{1 - real / each:.0%}" for each in sums))
            cells.append(", ".join(f"{each:.3g}" for each in micro_steps))
            cells.append(", ".join(f"{each / busiest[0]:.0%}" for each in busiest))
            print("|", " | ".join(map(str, cells)), "|", flush=True)


@contextlib.contextmanager
def running(case: Case, way: str, folder: Path) -> Iterator[Run]:
    """One rank's run."""
    with in_this_way(way), contextlib.redirect_stdout(io.StringIO()):
        run = build(load([*arguments(case, way), f"output_dir={folder}"]), "accumulate")
    yield run
    with contextlib.redirect_stdout(io.StringIO()):
        run.report.close("measured", 0)


def seconds(steps: Iterator[None]) -> float:
    """Of the processor, on one thread: what others do on the machine counts less than by the clock."""
    start = time.process_time()
    next(steps)
    return time.process_time() - start


def times(epochs: int) -> None:
    head = ("texts, model", "way", "ms per step", "of those filled up")
    print("\n|", " | ".join([*head, "single epochs"]), "|\n" + "|---" * 5 + "|")
    for case in TIMED:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            runs = [stack.enter_context(running(case, way, Path(folder) / str(i))) for i, way in enumerate(WAYS)]
            steps = [ours(run) for run in runs]
            count = runs[0].plan.batch.steps_per_epoch or 1
            spent = [[0.0] * len(WAYS) for _ in range(epochs + 1)]  # the first one is warm-up
            for k in range(count * (epochs + 1)):
                for way in sorted(range(len(WAYS)), key=lambda way: (way + k) % len(WAYS)):
                    spent[k // count][way] += seconds(steps[way])
        for way, name in enumerate(WAYS):
            ratios = sorted(epoch[way] / epoch[0] for epoch in spent[1:])
            per_step = statistics.median(epoch[way] for epoch in spent[1:]) / count * 1e3
            spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
            print(
                "|", " | ".join((case.name, name, f"{per_step:.3g}", f"{statistics.median(ratios):.2f}", spread)), "|"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="What length-aware windows save.")
    parser.add_argument("--epochs", type=int, default=5, help="timed; 0: tokens only")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tokens([*LINES, *TOPICS])
    if asked.epochs:
        times(asked.epochs)


if __name__ == "__main__":
    main()
