"""Data that are uneven, and data that kill, stop or keep waiting whoever reads them."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset

from tests.campaigns.faults import ranks
from tests.helpers import tiny
from train.batch.window import Batch

SHARDS = (range(10), range(100, 120))
"""Two, of 10 and 20 samples: the first number of a sample's inputs says which it is."""

_samples = itertools.count(1)
"""Those that this process has transformed."""


def uneven() -> IterableDataset:
    def some(shards: list[range]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield from (
                {"inputs": [float(n), 0.0, 0.0, 0.0, 0.0, 0.0], "labels": n % 3} for n in shard
            )

    return IterableDataset.from_generator(some, gen_kwargs={"shards": list(SHARDS)})


def sleepy() -> IterableDataset:
    """The samples of tiny, but the rank that reads for all of its machine, 0, never gets those
    of a later epoch.
    """
    starts: list[int] = []

    def some() -> Iterator[dict[str, Any]]:
        # here: datasets pickles what is global, for a hash
        from tests.campaigns.faults.ranks import fired, rank

        starts.append(1)
        for i, sample in enumerate(tiny()):
            if rank() == 0 and len(starts) > 4 and i == 10:
                fired("sleep")
                time.sleep(3600)
            yield sample

    return IterableDataset.from_generator(some)


def noisy(sample: Batch, generator: torch.Generator) -> Batch:
    return sample | {
        "inputs": sample["inputs"] + torch.randn(sample["inputs"].shape, generator=generator)
    }


# Transforms that end: the 30th sample of a data worker of rank 1 is its last


def killed(sample: Batch, generator: torch.Generator) -> Batch:
    if _is_last():
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


def stuck(sample: Batch, generator: torch.Generator) -> Batch:
    if _is_last():
        time.sleep(600)
    return sample


def stopped(sample: Batch, generator: torch.Generator) -> Batch:
    if _is_last():
        os.kill(os.getpid(), signal.SIGSTOP)
    return sample


def _is_last() -> bool:
    last = next(_samples) == 30 and ranks.rank() == 1
    if last:
        ranks.fired("last sample")
    return last
