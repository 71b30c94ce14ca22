"""Rows per second of ranks that share a machine, take a stream and compute nothing, and the
processor's time of each.

`python -m tests.campaigns.stream_rate --ranks 2 --kind rows --rows 15000`; with PYTHONPATH=FOLDER
of another version.
"""

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset

from tests.conftest import run_ranks
from tests.helpers import rank_group
from train.batch import make_plan
from train.batch.window import Place
from train.data.packed_stream import PackedStream
from train.data.packing import COLUMNS
from train.data.reading import Reader
from train.data.stream import Stream
from train.data.tokenizers import Bytes

SHARDS, OF_SHARD = 100, 4000


def source(kind: str) -> IterableDataset:
    def some(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for i in range(OF_SHARD):
                number = OF_SHARD * shard + i
                text, row = (
                    "lorem ipsum dolor sit amet " * 8,
                    {"x": [float(number)] * 64, "y": number % 10},
                )
                yield {"text": text} if kind == "texts" else row

    return IterableDataset.from_generator(some, gen_kwargs={"shards": list(range(SHARDS))})


def rate(kind: str, rows: int) -> tuple[float, float]:
    """(rows, or blocks of texts, per second; seconds of a processor per 100,000 of them) of this
    rank.
    """
    ranks = rank_group()
    if kind == "texts":
        reader = Reader({"text": "text"})
        data: Stream = PackedStream(
            source(kind),
            reader,
            100,
            by_rank=False,
            tokenizer=Bytes(),
            block_size=128,
            needed=COLUMNS,
        )
    else:
        data = Stream(source(kind), Reader({"x": "x", "y": "y"}), 1000, by_rank=False)
    plan = make_plan(512, 64, None, world_size=ranks.world_size, dataset_size=None)
    shares = data.shares(plan, 0, ranks.rank, Place(), None)
    next(shares)
    ranks.barrier()
    begun, own, done = time.perf_counter(), time.process_time(), 0
    while done < rows:
        done += next(shares).of_step
        ranks.sum([1.0])  # as each step
    return done / (time.perf_counter() - begun), (time.process_time() - own) * 1e5 / done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kind", choices=["rows", "texts"], default="rows")
    parser.add_argument("--rows", type=int, default=15_000)
    options = parser.parse_args()
    given = run_ranks(options.ranks, rate, options.kind, options.rows)
    seconds = ", ".join(f"{own:.1f}" for _, own in given)
    load = os.getloadavg()[0]
    print(
        f"{options.kind}, {options.ranks} ranks: {given[0][0]:,.0f} rows/s; {seconds} s a rank "
        f"(load {load:.1f})"
    )


if __name__ == "__main__":
    main()
