"""Blocks out of a stream of documents: those of a set that is loaded, on any ranks, from any place."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import argv, record, rows
from tests.tasks.test_tasks import texts
from tests.test_resume import segment
from train.batch import BatchPlan, make_plan
from train.batch.window import Place
from train.config import load
from train.config.recipe import Data
from train.data import DataError, open_datasets
from train.data.packed_stream import PackedStream
from train.data.packing import COLUMNS, pack
from train.data.reading import Reader
from train.data.shares import RankShare
from train.data.tokenizers import Bytes
from train.data.tokens import Tokenising

SIZE = 8  # tokens of a block
GPT = "model={target: gpt, args: {vocabulary: 257, layers: 1, heads: 2, width: 8}}"
RUN = (
    "data={source: tests.data.test_packed_stream.documents, block_size: 8, shuffle_buffer: 7, eval_split: test}",
    *(GPT, "task=causal_lm", "batch={effective: 8}", "optimizer={target: adamw, lr: 0.01}"),
)


def documents(count: int = 12, shards: int = 3) -> dict[str, IterableDataset]:
    """Of 12 texts, in shards; 127 blocks."""

    def some(parts: list[list[str]]) -> Iterator[dict[str, str]]:
        yield from ({"text": text} for part in parts for text in part)

    of_shard = np.array_split(texts(count)["text"], shards)
    train = IterableDataset.from_generator(
        some, gen_kwargs={"parts": [part.tolist() for part in of_shard]}
    )
    return {
        "train": train,
        "test": Dataset.from_dict({"text": ["one", "or two"]}).to_iterable_dataset(),
    }


def packed(dataset: IterableDataset, buffer: int, by_rank: bool = False) -> PackedStream:
    reader = Reader({"text": "text"})
    return PackedStream(
        dataset, reader, buffer, by_rank, tokenizer=Bytes(), block_size=SIZE, needed=COLUMNS
    )


def taken(
    data: PackedStream, plan: BatchPlan, place: Place, count: int, **options: Any
) -> list[list[list[int]]]:
    """The blocks of `count` steps, over all ranks."""
    options = {"overfit": None} | options
    parts = [
        list(islice(data.shares(plan, 0, rank, place, **options), count))
        for rank in range(plan.world_size)
    ]
    return [
        [b for part in step if part.samples for b in part.samples["inputs"].tolist()]
        for step in zip(*parts, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(
    some=st.lists(st.text(max_size=30), min_size=1, max_size=8).filter(lambda texts: any(texts)),
    effective=st.integers(1, 9),
    micro=st.integers(1, 4),
    ranks=st.integers(1, 3),
)
def test_an_epoch_is_what_a_loaded_set_is_cut_into(
    some: list[str], effective: int, micro: int, ranks: int
) -> None:
    dataset = Dataset.from_dict({"text": some})
    documents = Tokenising("text", Bytes(), identity=None).of(dataset)
    whole = pack(documents, Data(source="x", block_size=SIZE), COLUMNS)
    data = packed(dataset.to_iterable_dataset(), buffer=0)
    plan = make_plan(effective, micro, None, world_size=ranks, dataset_size=None)
    steps = -(-len(whole) // effective)

    parts: list[list[RankShare]] = [
        list(islice(data.shares(plan, 0, rank, Place(), None), 2 * steps)) for rank in range(ranks)
    ]

    in_order = [part.samples for step in zip(*parts, strict=True) for part in step if part.samples]
    for name in COLUMNS:
        joined = np.concatenate([share[name].numpy() for share in in_order])
        assert np.array_equal(joined, np.concatenate([whole.columns[name].numpy()] * 2))
    assert [part.last_of_epoch for part in parts[0]] == ([False] * (steps - 1) + [True]) * 2
    ids = np.concatenate([share["sample_id"].numpy() for share in in_order])
    assert ids.tolist() == [*range(len(whole))] * 2


def test_ranks_and_micro_batches_do_not_change_a_step_and_any_place_can_be_resumed_from() -> None:
    data = packed(documents()["train"], buffer=7)
    plans = [
        make_plan(8, micro, None, world_size=ranks, dataset_size=None)
        for ranks, micro in ((1, 8), (2, 3), (3, 1))
    ]
    whole = taken(data, plans[0], Place(), 80)
    ends = [k for k, step in enumerate(whole, start=1) if len(step) < 8]

    assert taken(data, plans[1], Place(), 80) == taken(data, plans[2], Place(), 80) == whole
    assert len(ends) > 1
    assert whole[: ends[0]] != whole[ends[0] : ends[1]], "each epoch is shuffled anew"
    for step, place in ((3, Place(0, 24)), (ends[0], Place(1)), (ends[0] + 2, Place(1, 16))):
        assert taken(data, plans[1], place, 80 - step) == whole[step:]


def test_a_dropped_tail_repeated_first_steps_and_own_shards() -> None:
    data, plan = (
        packed(documents()["train"], buffer=0),
        make_plan(8, 2, None, world_size=2, dataset_size=None),
    )
    whole = taken(data, plan, Place(), 20)
    tail = next(k for k, step in enumerate(whole) if len(step) < 8)
    dropping = make_plan(8, 2, None, world_size=2, dataset_size=None, drop_tail=True)

    assert taken(data, dropping, Place(), tail + 1) == [*whole[:tail], whole[0]]
    assert taken(data, plan, Place(0, 8), 3, overfit=2) == [whole[1], whole[0], whole[1]]
    own = packed(documents(shards=2)["train"], 0, by_rank=True)
    assert {len(step) for step in taken(own, plan, Place(), 40)} == {8}
    assert taken(own, plan, Place(0, 80), 3) == taken(own, plan, Place(), 13)[10:]


def test_a_run_is_the_same_on_1_and_2_ranks_and_after_a_kill(
    run_ranks: Any, tmp_path: Path
) -> None:
    given = (*RUN, "checkpoint={resume: auto, every_steps: 3}", "duration={steps: 14}")
    (whole,) = run_ranks(1, segment, argv(tmp_path, *given, "name=whole"), "standard")

    run_ranks(2, segment, argv(tmp_path, *given, "batch.micro=1"), "accumulate", 11)
    resumed = run_ranks(2, segment, argv(tmp_path, *given, "batch.micro=1"), "accumulate")

    assert list(resumed[0].ids) == [10, 11, 12, 13, 14]
    assert np.allclose(resumed[0].weights, whole.weights, rtol=1e-8, atol=1e-12)
    for key in ("train/loss", "eval/loss"):
        of_whole, of_split = (
            {r["train/global_step"]: r[key] for r in rows(tmp_path, key, n)}
            for n in ("whole", "run")
        )
        assert of_split == pytest.approx(of_whole, rel=1e-10)


def other(kind: str) -> IterableDataset:
    columns: dict[str, list[Any]] = {"numbers": [1, 2], "text": ["a", None]}
    return Dataset.from_dict({"text": columns[kind]}).to_iterable_dataset()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("args: {kind: numbers}", "holds int64"),
        ("args: {kind: text}, shuffle_buffer: 0", "no value in row 1 of split 'train'"),
        (
            "args: {kind: text}, columns: {text: body}",
            "has the columns text. Say which one it is: data.columns.text=text",
        ),
        ("args: {kind: text}, eval_fraction: 0.5", "of a stream of unknown length"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path: Path, data: str, message: str) -> None:
    source = f"data={{source: tests.data.test_packed_stream.other, block_size: 4, {data}}}"

    with pytest.raises(DataError, match=message):
        open_datasets(load(argv(tmp_path, source)).config, ("inputs", "labels")).train.first(0, 8)


def test_a_loaded_set_can_be_streamed(tmp_path: Path) -> None:
    data = "data={source: tests.tasks.test_tasks.texts, block_size: 16, streaming: true, eval_split: train}"

    trace = record(argv(tmp_path, data, GPT, "task=causal_lm", "duration={tokens: 200}"))

    assert [window.samples for window in trace.windows] == [8, 8]  # of 16 tokens
