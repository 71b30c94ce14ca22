"""A stream on ranks that share a machine: one of them reads it, and each has the samples that it
would have read.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import IterableDataset

from tests.conftest import FORKS, free_port, rank_environment
from tests.data.test_packed_stream import documents, packed
from tests.helpers import rank_group
from train.batch import BatchPlan, make_plan
from train.batch.window import Place
from train.data import DataError, Windows
from train.data.handout import portable
from train.data.reading import Reader
from train.data.shares import Misread, RankShare
from train.data.stream import Stream
from train.errors import RankFailed, RunFailed

SIZE = 50
Seen = list[tuple[Any, ...]]


def noted(folder: Path, fails_at: int | None = None) -> Stream:
    """Of 50 samples in five shards; whoever reads one writes its process down."""

    def some(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            with (folder / "readers").open("a") as file:
                file.write(f"{os.getpid()}\n")
            for i in range(10 * shard, 10 * shard + 10):
                if i == fails_at:
                    raise OSError(f"sample {i} is broken")
                yield {"n": i, "text": "x" * i}

    def explain(error: Exception) -> Exception:
        return DataError(f"cannot read the source: {error}")

    dataset = IterableDataset.from_generator(some, gen_kwargs={"shards": list(range(SIZE // 10))})
    return Stream(dataset, Reader({"n": "n"}), 0, by_rank=False, explain=explain)


def described(share: RankShare) -> tuple[Any, ...]:
    micro_batches = [
        {name: column.tolist() for name, column in micro.batch.items()}
        for micro in share
        if isinstance(micro.batch, dict)
    ]
    return (
        *(
            share.epoch,
            share.last_of_epoch,
            share.sizes,
            share.largest,
            share.of_step,
            share.tokens,
        ),
        micro_batches,
    )


def of_all_kinds(folder: Path, rank: int, world_size: int) -> dict[str, Seen]:
    data, blocks = noted(folder), packed(documents()["train"], buffer=7)
    plan = make_plan(8, 2, None, world_size=world_size, dataset_size=None)
    weighted = replace(plan, weights=tuple(range(1, world_size + 1)), limits=(2,) * world_size)
    shuffled = replace(data, shuffle_buffer=16)

    def taken(data: Stream, plan: BatchPlan, place: Place, overfit: int | None = None) -> Seen:
        return [
            described(share) for share in islice(data.shares(plan, 3, rank, place, overfit), 16)
        ]

    return {
        "in order": taken(data, plan, Place()),
        "shuffled": taken(shuffled, plan, Place()),
        "resumed": taken(shuffled, plan, Place(1, 16, 66)),
        "overfit": taken(data, plan, Place(), 2),
        "dropped tail": taken(data, replace(plan, drop_tail=True), Place()),
        "unequal": taken(data, weighted, Place()),
        "blocks": taken(blocks, plan, Place()),
        "in turn": taken(data.deferred(("n",)), plan, Place()),
    }


def read_all(folder: Path) -> tuple[int, dict[str, Seen]]:
    ranks = rank_group()
    return os.getpid(), of_all_kinds(folder, ranks.rank, ranks.world_size)


@pytest.mark.parametrize("world_size", [2, 3])
def test_one_rank_reads_and_each_has_its_own_samples(
    run_ranks: Any, tmp_path: Path, world_size: int
) -> None:
    given = run_ranks(world_size, read_all, tmp_path)
    readers = {int(line) for line in (tmp_path / "readers").read_text().split()}

    assert readers == {given[0][0]}
    for rank, (_, seen) in enumerate(given):
        # this process reads all of them by itself
        assert seen == of_all_kinds(tmp_path, rank, world_size)
    for k in range(6):  # of 8 samples each
        assert [
            n for _, seen in given for micro in seen["in order"][k][-1] for n in micro["n"]
        ] == list(range(8 * k, 8 * k + 8))


def error_of(folder: Path, fails_at: int | None) -> tuple[type[Exception], str, int]:
    """(its kind, what it says, steps before it)"""
    ranks = rank_group()
    plan = make_plan(8, 2, None, world_size=ranks.world_size, dataset_size=None)
    steps = 0
    try:
        for _ in noted(folder, fails_at).shares(plan, 0, ranks.rank, Place(), None):
            steps += 1
    except Exception as error:
        return type(error), str(error), steps
    raise AssertionError("the stream has an end")


@pytest.mark.parametrize(("fails_at", "steps"), [(0, 0), (29, 2)])  # one step is read ahead
def test_an_error_of_the_source_is_the_same_on_all_ranks(
    run_ranks: Any, tmp_path: Path, fails_at: int, steps: int
) -> None:
    given = run_ranks(3, error_of, tmp_path, fails_at)

    assert given == [(DataError, f"cannot read the source: sample {fails_at} is broken", steps)] * 3


def test_an_error_reaches_another_process_as_the_nearest_kind() -> None:
    class Local(DataError):
        """Which no other process can import."""

    for error, kind in (
        (Misread("what", "fix", "column"), DataError),
        (Local("what. fix"), DataError),
        (DataError("what. fix"), DataError),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "odd"), UnicodeDecodeError),
    ):
        assert type(portable(error)) is kind
        assert str(portable(error)) == str(error)


def until_it_ends(rank: int, port: int, folder: Path, ended: Any) -> None:
    """Two steps; then the rank that reads is killed."""
    os.environ.update(rank_environment(rank, 2, port))
    plan = make_plan(8, 2, None, world_size=2, dataset_size=None)
    shares = noted(folder).shares(plan, 0, rank, Place(), None)
    first = [next(shares) for _ in range(2)]
    assert len(first) == 2
    if rank == 0:
        ended.get(timeout=60)  # the other has its two steps
        os.kill(os.getpid(), signal.SIGKILL)
    ended.put("two steps")
    begun = time.monotonic()
    try:
        list(shares)
    except RankFailed as error:
        ended.put((str(error), time.monotonic() - begun))


def test_the_death_of_the_rank_that_reads_ends_the_others(tmp_path: Path) -> None:
    ended, port = FORKS.Queue(), free_port()
    ranks = [
        FORKS.Process(target=until_it_ends, args=(rank, port, tmp_path, ended)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)

    sentence, seconds = ended.get(timeout=10)
    assert "has left" in sentence
    assert seconds < 10
    assert ranks[0].exitcode == -signal.SIGKILL


def windows_until(folder: Path, failing_rank: int, at: int) -> tuple[type[Exception], str, float]:
    """One rank meets an error between two steps, before it asks for its samples: the others wait
    for none from it.
    """
    ranks = rank_group()
    plan = make_plan(8, 2, None, world_size=ranks.world_size, dataset_size=None)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == at and ranks.rank == failing_rank:
            raise RunFailed("this rank cannot go on")

    windows = Windows(
        shares=noted(folder).shares(plan, 0, ranks.rank, Place(), None),
        ranks=ranks,
        terms=("loss",),
        loss_weight=lambda batch: {"loss": float(len(batch["n"]))},
        stop_requested=lambda: False,
        check=check,
        last=6,
    )
    begun = time.monotonic()
    try:
        for _ in windows:
            ranks.sum([1.0])  # as the reduction of each step
    except Exception as error:
        return type(error), str(error), time.monotonic() - begun
    raise AssertionError("no error")


@pytest.mark.parametrize(("failing_rank", "at"), [(0, 1), (0, 3), (1, 3)])
def test_a_rank_that_fails_before_it_reads_leaves_none_waiting(
    run_ranks: Any, tmp_path: Path, failing_rank: int, at: int
) -> None:
    given = run_ranks(2, windows_until, tmp_path, failing_rank, at)

    said = "this rank cannot go on"
    for rank, (kind, sentence, seconds) in enumerate(given):
        assert (kind, sentence) == (
            RunFailed,
            said if rank == failing_rank else f"rank {failing_rank}: {said}",
        )
        assert seconds < 10


def test_ranks_that_share_no_machine_read_by_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in rank_environment(1, 2, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    plan = make_plan(8, 2, None, world_size=2, dataset_size=None)

    share = next(noted(tmp_path).shares(plan, 0, 1, Place(), None))

    assert [n for micro in share for n in micro.batch["n"].tolist()] == [4, 5, 6, 7]
    assert (tmp_path / "readers").exists()
