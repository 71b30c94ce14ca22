"""Copies to a GPU that overlap with the work of the micro-batch before, on a side stream that is played here."""

from collections.abc import Callable

import pytest
import torch

from train.batch.window import Batch, MicroBatch
from train.data.device_prefetch import Feed
from train.data.shares import RankShare

CPU = torch.device("cpu")


class Played:
    """As feed.Side: what was started has no values before it was waited for."""

    def __init__(self) -> None:
        self.under_way: list[tuple[Batch, Batch]] = []
        self.started: list[int] = []

    def start(self, batch: Batch) -> Batch:
        empty = {name: torch.full_like(column, -1) for name, column in batch.items()}
        self.under_way.append((empty, batch))
        self.started.append(int(batch["x"][0]))
        return empty

    def wait(self) -> None:
        for empty, batch in self.under_way:
            for name, column in batch.items():
                empty[name].copy_(column)
        self.under_way = []


def micro_batch(number: int) -> MicroBatch:
    return MicroBatch({"x": torch.tensor([number])}, 1)


@pytest.fixture(name="side")
def played_side() -> Played:
    return Played()


@pytest.fixture(name="feed")
def feed_beside(side: Played) -> Feed:
    feed = Feed(CPU, torch.float32)
    feed._side = side  # type: ignore[assignment]
    return feed


def test_each_travels_while_the_one_before_is_worked_on(feed: Feed, side: Played) -> None:
    windows = [[micro_batch(10 * k + i) for i in range(3)] for k in range(4)]
    given = []

    feed.expect(windows[0])
    for k, window in enumerate(windows):
        if k + 1 < len(windows):
            feed.expect(windows[k + 1])
        for each in window:
            given.append(int(feed.take(each)["x"][0]))
            if each is not windows[-1][-1]:  # also where the next one is of the next step
                assert side.started[-1] != given[-1]
                assert len(side.under_way) == 1, "more than one is on its way"

    expected = [10 * k + i for k in range(4) for i in range(3)]
    assert given == expected
    assert side.started == expected[1:]
    assert not side.under_way


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_that_is_left_out_is_passed_over(feed: Feed, side: Played, count: int) -> None:
    """None of its labels counts: it is announced as the others, and never taken."""
    windows = [[micro_batch(10 * k + i) for i in range(count)] for k in range(6)]
    given = []

    feed.expect(windows[0])
    for k, window in enumerate(windows):
        if k + 1 < len(windows):
            feed.expect(windows[k + 1])
        for each in window if k != 2 else ():
            given.append(int(feed.take(each)["x"][0]))
            assert len(side.under_way) <= 1, "a copy was let go of before it had ended"

    assert given == [10 * k + i for k in (0, 1, 3, 4, 5) for i in range(count)]
    assert side.started[-(2 * count) :] == given[-(2 * count) :], "the later ones do not travel"


def test_what_nobody_announced_is_copied_at_once_and_the_order_stays(feed: Feed, side: Played) -> None:
    first, second, other = (micro_batch(number) for number in (1, 2, 9))
    feed.expect([first, second])

    given = [int(feed.take(each)["x"][0]) for each in (other, first, other, second)]

    assert given == [9, 1, 9, 2]
    assert side.started == [2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_columns_arrive_in_their_own_types_and_only_float64_widens_them(dtype: torch.dtype) -> None:
    batch = {"x": torch.ones(2), "half": torch.ones(2).half(), "labels": torch.ones(2, dtype=torch.int64)}

    given = Feed(CPU, dtype).take(MicroBatch(batch, 2))

    wide = dtype == torch.float64
    assert given["x"].dtype == (torch.float64 if wide else torch.float32)
    assert given["half"].dtype == (torch.float64 if wide else torch.float16)
    assert given["labels"].dtype == torch.int64


def two_columns(batch: Batch) -> Batch:
    return {name: column[:, :2].contiguous() if column.dim() > 1 else column for name, column in batch.items()}


@pytest.mark.parametrize("trim", [None, two_columns])
def test_what_is_announced_is_pinned_as_it_travels(
    trim: Callable[[Batch], Batch] | None, side: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where padding is trimmed, which copies: the trimmed micro-batch is what must lie in pinned memory."""
    pinned: set[int] = set()

    def pin(column: torch.Tensor) -> torch.Tensor:
        copy = column.clone()
        pinned.add(copy.untyped_storage().data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    samples = {"inputs": torch.arange(12).view(3, 4), "sample_id": torch.arange(3)}
    share = RankShare(epoch=0, last_of_epoch=False, samples=samples, sizes=(2, 1), filler={}, largest=3, trim=trim)
    feed = Feed(CPU, torch.float32)
    monkeypatch.setattr(feed, "_side", side)

    (announced,) = feed.announced(iter([share]))

    assert [m.samples for m in announced] == [2, 1]
    assert {id(m) for m in feed._coming} == {id(m) for m in announced}, "another micro-batch than the announced one"
    for micro_batch in announced:
        for column in micro_batch.batch.values():
            assert column.untyped_storage().data_ptr() in pinned
