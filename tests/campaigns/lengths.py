"""What length-aware windows save: the useful share of the tokens computed, and useful tokens per
second.

OMP_NUM_THREADS=1 python -m tests.campaigns.lengths [--epochs N]        prints tables for
docs/results/lengths.md

Three distributions: the lines of configs/data/manual.csv; whole documents, the topics of Python's
documentation; texts with log-normal lengths. Each way has room for as many tokens at once: texts
filled up to data.max_length; cut to the longest of the micro-batch, the data in its order (what
transformers' DataCollatorWithPadding does); batch.micro_tokens, and with as few micro-batches as
there is room for; and the sampler that transformers has for group_by_length, which changes which
texts share a step, and so the curve. In the second table each step is taken once in each way, one
after the other in one process; ratios are those of an epoch's processor time on one thread.
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

import numpy as np
import torch
from datasets import Dataset

from tests.campaigns.length_ways import FILLED, IN_ORDER, OURS, WAYS, in_this_way
from tests.helpers_cost import ours
from train.batch.window import Place
from train.config import load
from train.data import ByLength, open_datasets
from train.data.lengths import deal
from train.data.python_docs import python_docs
from train.plan.steps import plan_batch
from train.run import Run, build

ROOT = Path(__file__).parents[2]
BERT = "configs/finetune.yaml"
CONV = "configs/text.yaml"
DOCUMENTS = (
    "data={source: tests.campaigns.lengths.documents, columns: {inputs: text, labels: kind}}"
)
LOG_NORMAL = (
    "data={source: tests.campaigns.lengths.log_normal, columns: {inputs: inputs, labels: labels}}"
)
WIDE = ("model.args.from_config.hidden_size=128", "model.args.from_config.intermediate_size=512")


@dataclass(frozen=True)
class Case:
    name: str
    config: str
    max_length: int
    effective: int
    micro: int = 8  # texts of max_length that there is room for at once
    overrides: tuple[str, ...] = ()


COUNTED = [
    *(Case("lines", CONV, 80, effective) for effective in (32, 128)),
    *(Case("log-normal", CONV, 512, effective, 8, (LOG_NORMAL,)) for effective in (32, 128)),
    Case("documents", CONV, 4096, 32, 8, (DOCUMENTS,)),
]
TIMED = [
    Case("lines, bert", BERT, 80, 32),
    *(Case("log-normal, bert", BERT, 512, effective, 8, (LOG_NORMAL,)) for effective in (32, 128)),
    Case("log-normal, bert of width 128", BERT, 512, 32, 8, (LOG_NORMAL, *WIDE)),
    Case("log-normal, text_conv", CONV, 512, 32, 8, (LOG_NORMAL,)),
    Case("documents, text_conv", CONV, 4096, 32, 8, (DOCUMENTS,)),
]


def documents() -> Dataset:
    """The topics, and for a label whether a topic stands in the first half of the alphabet."""
    data = python_docs()
    return data.add_column("kind", [int(topic < "m") for topic in data["topic"]])


def log_normal(size: int = 512) -> Dataset:
    """Half of the texts have fewer than 90 letters, one in twenty more than 205."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.5, 0.5, size).astype(int), 1, 512)
    texts = ["".join(random.choice([*"abcde"], length)) for length in lengths]
    return Dataset.from_dict({"inputs": texts, "labels": random.integers(0, 2, size)})


def arguments(case: Case, way: int) -> list[str]:
    room = (
        f"batch.micro={case.micro}"
        if way == FILLED
        else f"batch.micro_tokens={case.micro * case.max_length}"
    )
    given = [str(ROOT / case.config), *case.overrides, f"data.max_length={case.max_length}", room]
    given += [
        f"batch.effective={case.effective}",
        "data.eval_fraction=0",
        "evaluate.best=null",
        "name=run",
    ]
    given += ["checkpoint.resume=never", "wandb.mode=disabled", "duration.steps=1000000"]
    return [*given, "log.every_steps=1000000", "noise_scale.every_steps=0"]


@dataclass(frozen=True)
class Computed:
    """Of an epoch, padding included."""

    tokens: int
    busiest: int  # the sum over the steps of the rank that has most of them
    micro_steps: float  # per step
    at_once: int  # the most tokens


def computed(case: Case, way: int, ranks: int) -> Computed:
    config = load(arguments(case, way)).config
    with in_this_way(way):
        train = open_datasets(config, ("inputs", "labels")).train
        plan = plan_batch(config, "accumulate", ranks, train.size)
        assert plan.steps_per_epoch is not None
        micro_steps = []
        sums = np.zeros((ranks, plan.steps_per_epoch), int)
        at_once = 0
        for rank in range(ranks):
            shares = islice(
                train.shares(plan, config.seed, rank, Place(), None), plan.steps_per_epoch
            )
            for k, part in enumerate(shares):
                sizes = [micro_batch.batch["inputs"].numel() for micro_batch in part]
                micro_steps.append(len(sizes))
                at_once = max(at_once, *sizes)
                sums[rank, k] = sum(sizes)
    return Computed(int(sums.sum()), int(sums.max(0).sum()), statistics.fmean(micro_steps), at_once)


def real_tokens(case: Case) -> int:
    train = open_datasets(load(arguments(case, OURS)).config, ("inputs", "labels")).train
    assert isinstance(train, ByLength)
    return int(train.lengths.sum())


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def tokens(cases: list[Case]) -> None:
    head = (
        "texts",
        "effective",
        "ranks",
        "way",
        "useful share",
        "busiest rank, tokens",
        "micro-steps per step",
    )
    row(*head)
    row(*["---"] * len(head))
    for case in cases:
        real = real_tokens(case)
        for ranks in (1, 2):
            found = [computed(case, way, ranks) for way in range(len(WAYS))]
            assert max(each.at_once for each in found) <= case.micro * case.max_length
            usual = found[IN_ORDER].busiest
            for name, each in zip(WAYS, found, strict=True):
                cells = (
                    f"{real / each.tokens:.2f}",
                    f"{each.busiest / usual:.2f}",
                    f"{each.micro_steps:.3g}",
                )
                row(f"{case.name}, {case.max_length:,}", case.effective, ranks, name, *cells)


def dealing(count: int = 1024) -> None:
    """What the cut of a large step takes."""
    print()
    row(
        "texts of a step, log-normal",
        "tokens at once",
        "ranks",
        "ms to cut, best",
        "median",
        "worst",
    )
    row(*["---"] * 6)
    for ranks in (1, 2, 8):
        for micro in (4, 8, 32):
            spent = []
            for seed in range(30):
                lengths = np.clip(
                    np.random.default_rng(seed).lognormal(4.5, 0.5, count).astype(int), 1, 512
                )
                start = time.perf_counter()
                deal(lengths, ranks, micro * 512, micro)
                spent.append((time.perf_counter() - start) * 1e3)
            cells = [f"{each:.2f}" for each in (min(spent), statistics.median(spent), max(spent))]
            row(f"{count:,}", f"{micro * 512:,}", ranks, *cells)


@contextlib.contextmanager
def running(case: Case, way: int, folder: Path) -> Iterator[Run]:
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
    head = (
        "texts, model",
        "effective",
        "way",
        "useful tokens per second",
        "of those in the order of the data",
    )
    print()
    row(*head, "single epochs")
    row(*["---"] * (len(head) + 1))
    for case in TIMED:
        spent = epoch_times(case, epochs)
        real = real_tokens(case)
        for way, name in enumerate(WAYS):
            ratios = sorted(epoch[IN_ORDER] / epoch[way] for epoch in spent)
            rate = real / statistics.median(epoch[way] for epoch in spent)
            spread = f"{ratios[0]:.2f} - {ratios[-1]:.2f}"
            row(
                case.name,
                case.effective,
                name,
                f"{rate:,.0f}",
                f"{statistics.median(ratios):.2f}",
                spread,
            )


def epoch_times(case: Case, epochs: int) -> list[list[float]]:
    """[epoch][way] -> seconds, after an epoch of warm-up."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ways = range(len(WAYS))
        runs = [stack.enter_context(running(case, way, Path(folder) / str(way))) for way in ways]
        steps = [ours(run) for run in runs]
        count = runs[0].plan.batch.steps_per_epoch or 1
        spent = [[0.0] * len(WAYS) for _ in range(epochs + 1)]
        for k in range(count * (epochs + 1)):
            for way in sorted(ways, key=lambda way: (way + k) % len(WAYS)):
                with in_this_way(way):
                    spent[k // count][way] += seconds(steps[way])
    return spent[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="What length-aware windows save.")
    parser.add_argument("--epochs", type=int, default=5, help="timed; 0: tokens only")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tokens(COUNTED)
    dealing()
    if asked.epochs:
        times(asked.epochs)


if __name__ == "__main__":
    main()
