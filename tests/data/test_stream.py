"""Data of unknown length: one order for all ranks, each sample once, nothing left over for the next
epoch.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tests.helpers import argv, distance, record, rows, stream, whole_batch
from train.batch import BatchPlan, make_plan
from train.batch.window import Place
from train.data import DataError
from train.data.reading import Reader
from train.data.shares import RankShare
from train.data.stream import Stream

STREAMED = ("data.source=tests.helpers.stream", "data.shuffle_buffer=0")


def numbers(size: int) -> IterableDataset:
    def some(parts: list[int]) -> Any:
        yield from ({"n": i} for i in parts)

    return IterableDataset.from_generator(some, gen_kwargs={"parts": list(range(size))})


def of_all_ranks(
    data: Stream, plan: BatchPlan, place: Place, count: int, **options: Any
) -> list[list[RankShare]]:
    """The parts of `count` steps, of each rank."""
    options = {"overfit": None} | options
    return [
        list(islice(data.shares(plan, 0, rank, place, **options), count))
        for rank in range(plan.world_size)
    ]


def told(parts: list[list[RankShare]]) -> list[list[int]]:
    """What the samples of each step are, over all ranks."""
    return [
        [n for part in step if part.samples for n in part.samples["n"].tolist()]
        for step in zip(*parts, strict=True)
    ]


@settings(max_examples=25)
@given(
    size=st.integers(1, 40),
    effective=st.integers(1, 20),
    micro=st.integers(1, 6),
    ranks=st.integers(1, 3),
    buffer=st.sampled_from([0, 7]),
)
def test_each_epoch_takes_every_sample_once(
    size: int, effective: int, micro: int, ranks: int, buffer: int
) -> None:
    data = Stream(numbers(size), Reader({"n": "n"}), buffer, by_rank=False)
    plan = make_plan(effective, micro, None, world_size=ranks, dataset_size=None)
    per_epoch = -(-size // effective)

    parts = of_all_ranks(data, plan, Place(), 2 * per_epoch)

    for epoch in (0, 1):
        steps = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        taken = [n for step in told(parts)[steps] for n in step]
        assert sorted(taken) == list(range(size))
        for of_rank in parts:
            assert [part.epoch for part in of_rank[steps]] == [epoch] * per_epoch
            assert [part.last_of_epoch for part in of_rank[steps]] == [False] * (per_epoch - 1) + [
                True
            ]
    for step in zip(*parts, strict=True):
        assert len({len(part.sizes) for part in step}) == 1
        assert all(0 not in part.sizes or len(part.filler["n"]) == 1 for part in step)


def test_ranks_and_micro_batches_do_not_change_a_step() -> None:
    data = Stream(numbers(50), Reader({"n": "n"}), 16, by_rank=False)
    plans = [
        make_plan(8, micro, None, world_size=ranks, dataset_size=None)
        for ranks, micro in ((1, 8), (2, 3), (3, 1))
    ]

    steps = [told(of_all_ranks(data, plan, Place(), 14)) for plan in plans]

    assert steps[0] == steps[1] == steps[2]
    assert steps[0][:7] != steps[0][7:], "each epoch is shuffled anew"


@pytest.mark.parametrize("buffer", [0, 16])
def test_any_place_can_be_resumed_from(buffer: int) -> None:
    data = Stream(numbers(50), Reader({"n": "n"}), buffer, by_rank=False)
    plan = make_plan(8, 4, None, world_size=2, dataset_size=None)
    whole = of_all_ranks(data, plan, Place(), 14)

    for step, place in ((3, Place(0, 24)), (7, Place(1)), (9, Place(1, 16))):
        rest = of_all_ranks(data, plan, place, 14 - step)
        assert told(rest) == told(whole)[step:]
        assert [p.samples["sample_id"].tolist() for p in rest[0]] == [
            p.samples["sample_id"].tolist() for p in whole[0][step:]
        ]


def test_a_dropped_tail_and_repeated_first_steps() -> None:
    data = Stream(numbers(21), Reader({"n": "n"}), 0, by_rank=False)
    plan = make_plan(8, "all", None, world_size=1, dataset_size=None, drop_tail=True)

    dropped = of_all_ranks(data, plan, Place(), 3)
    repeated = of_all_ranks(data, plan, Place(0, 8), 3, overfit=2)

    assert told(dropped) == [list(range(8)), list(range(8, 16)), list(range(8))]
    assert [part.last_of_epoch for part in dropped[0]] == [False, True, False]
    assert told(repeated) == [list(range(8, 16)), list(range(8)), list(range(8, 16))]


def test_own_shards_never_end() -> None:
    # Given shards of 25 and 12 samples, one for each rank
    data = Stream(stream(shards=2), Reader({"n": "place"}), 0, by_rank=True)
    plan = make_plan(8, 2, None, world_size=2, dataset_size=None)

    parts = of_all_ranks(data, plan, Place(), 8)

    assert {part.sizes for of_rank in parts for part in of_rank} == {(2, 2)}
    seen = [[n for part in of_rank for n in part.samples["n"].tolist()] for of_rank in parts]
    assert seen == [[*range(25), *range(7)], [*range(25, 37), *range(25, 37), *range(25, 33)]]
    assert told(of_all_ranks(data, plan, Place(0, 40), 3)) == told(parts)[5:]


def test_an_empty_stream() -> None:
    data = Stream(numbers(0), Reader({"n": "n"}), 0, by_rank=False)

    with pytest.raises(DataError, match="no samples"):
        data.first(0, 8)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 8), (1, 3), (2, 2), (3, 1)])
def test_gradients_and_samples_are_those_of_the_whole_batch(
    run_ranks: Any, tmp_path: Path, world_size: int, micro: int
) -> None:
    arguments = argv(tmp_path, *STREAMED, f"batch.micro={micro}", "duration={steps: 12}")

    ranks = run_ranks(world_size, record, arguments)

    assert [window.samples for window in ranks[0].windows] == [8, 8, 8, 8, 5] * 2 + [8, 8]
    assert [window.epoch for window in ranks[0].windows] == [0] * 5 + [1] * 5 + [2] * 2
    for k in range(1, 13):
        ids = [i for rank in ranks for i in rank.ids[k - 1]]
        first = 8 * ((k - 1) % 5)
        assert ids == list(range(first, min(first + 8, 37)))
        loss, gradient = whole_batch(argv(tmp_path), ranks[0].weights[k - 1], ids, cross_entropy)
        assert distance(ranks[0].gradients[k], gradient) <= 1e-12
        assert rows(tmp_path)[k - 1]["train/loss"] == pytest.approx(loss, rel=1e-12)


def test_the_same_samples_give_the_same_curve(run_ranks: Any, tmp_path: Path) -> None:
    losses = []
    for world_size, micro in ((1, 8), (2, 2), (3, 1)):
        folder = tmp_path / f"{world_size}"
        folder.mkdir()
        overrides = (
            "data.source=tests.helpers.stream",
            "data.shuffle_buffer=16",
            f"batch.micro={micro}",
        )
        run_ranks(world_size, record, argv(folder, *overrides, "duration={steps: 12}"))
        losses.append([row["train/loss"] for row in rows(folder)])

    assert len(losses[0]) == 12
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-10)


def test_streamed_images_on_a_rank_that_gets_none_of_a_tail(tmp_path: Path) -> None:
    from tests.data.files import opened, pictures

    folder = pictures(tmp_path / "pictures", count=3, kinds=("cat",))
    pictures(folder, count=2, kinds=("dog",))
    data = opened(
        tmp_path, folder, "data.streaming=true", "data.columns={inputs: image, labels: label}"
    ).train
    plan = make_plan(4, "all", None, world_size=2, dataset_size=None)

    parts = list(islice(data.shares(plan, 0, 1, Place(), None), 2))  # of 4 and of 1 samples

    assert [part.sizes for part in parts] == [(2,), (0,)]
    assert len(parts[1].filler["inputs"]) == 1
