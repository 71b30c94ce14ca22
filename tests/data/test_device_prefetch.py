"""Copies to a GPU that overlap with the work of the micro-batch before, on a side stream that is
played here.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from train.batch.window import Batch, MicroBatch
from train.data.deferred import DeferredReads
from train.data.device_prefetch import Feed, Side, one_ahead, travelling
from train.data.pixels import Scaled
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


def step(*numbers: int, sizes: tuple[int, ...] = ()) -> RankShare:
    """With micro-batches of one sample each, unless `sizes` says otherwise."""
    sizes = sizes or (1,) * len(numbers)
    samples = {"x": torch.tensor(numbers)}
    return RankShare(epoch=0, last_of_epoch=False, samples=samples, sizes=sizes, largest=sum(sizes))


def step_of_three(k: int, count: int = 3) -> RankShare:
    return step(*(10 * k + i for i in range(count)))


@pytest.fixture(name="side")
def played_side() -> Played:
    return Played()


@pytest.fixture(name="feed")
def feed_beside(side: Played, monkeypatch: pytest.MonkeyPatch) -> Feed:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    feed = Feed(CPU, torch.float32)
    feed._side = side  # type: ignore[assignment]
    return feed


def test_each_travels_while_the_one_before_is_worked_on(feed: Feed, side: Played) -> None:
    windows = [feed.announce(step_of_three(0))]
    given = []

    for k in range(4):
        if k < 3:
            windows.append(feed.announce(step_of_three(k + 1)))
        for each in windows[k]:
            given.append(int(feed.take(each)["x"][0]))
            if given[-1] != 32:  # also where the next one is of the next step
                assert side.started[-1] != given[-1]
                assert len(side.under_way) == 1, "more than one is on its way"

    expected = [10 * k + i for k in range(4) for i in range(3)]
    assert given == expected
    assert side.started == expected[1:]
    assert not side.under_way


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_that_is_left_out_is_passed_over(feed: Feed, side: Played, count: int) -> None:
    """None of its labels counts: it is announced as the others, and never taken."""
    windows = [feed.announce(step_of_three(0, count))]
    given = []

    for k in range(6):
        windows.append(feed.announce(step_of_three(k + 1, count)))
        for each in windows[k] if k != 2 else ():
            given.append(int(feed.take(each)["x"][0]))
            assert len(side.under_way) <= 1, "a copy was let go of before it had ended"

    assert given == [10 * k + i for k in (0, 1, 3, 4, 5) for i in range(count)]
    assert side.started[-2 * count : -1] == given[-(2 * count) + 1 :], (
        "the later ones do not travel"
    )


def test_what_nobody_announced_is_copied_at_once_and_the_order_stays(
    feed: Feed, side: Played
) -> None:
    (other,) = step(9)
    announced = iter(feed.announce(step(1, 2)))

    def given(micro_batch: MicroBatch) -> int:
        return int(feed.take(micro_batch)["x"][0])

    assert [given(other), given(next(announced)), given(other), given(next(announced))] == [
        9,
        1,
        9,
        2,
    ]
    assert side.started == [2]


def test_each_is_read_while_the_one_before_is_worked_on(feed: Feed, side: Played) -> None:
    """Where samples are read in the step: the next one, also of the next step, is on the host when
    it is to travel.
    """
    read: list[int] = []

    def deferred(*numbers: int) -> RankShare:
        def one(start: int, stop: int) -> Batch:
            read.append(numbers[start])
            return {"x": torch.tensor(numbers[start:stop])}

        sizes = (1,) * len(numbers)
        samples = DeferredReads(one, dict, None, sizes)
        return RankShare(
            epoch=0, last_of_epoch=False, samples=samples, sizes=sizes, largest=len(numbers)
        )

    steps = [feed.announce(deferred(1, 2, 3)), feed.announce(deferred(4, 5))]
    happened = []
    for micro_batches in steps:
        for each in micro_batches:
            before = list(read)
            given = int(feed.take(each)["x"][0])
            assert read == before, "the copy of the next one waited for its being read"
            happened.append((given, read[-1], side.started[-1] if side.started else 0))

    assert happened == [(1, 2, 2), (2, 3, 3), (3, 4, 4), (4, 5, 5), (5, 5, 5)]


def test_after_a_shrink_smaller_ones_are_announced(feed: Feed, side: Played) -> None:
    """What travels when memory runs out is waited for, and let go of; windows announced later are
    cut before.
    """
    shares = [step(*range(8 * k, 8 * k + 8), sizes=(4, 4)) for k in range(3)]
    announced = [feed.announce(share) for share in shares[:2]]  # a step ahead
    feed.take(next(iter(announced[0])))
    assert len(side.under_way) == 1

    feed.shrink(2)

    assert not side.under_way
    again = [feed.take(each)["x"].tolist() for share in announced for each in share.recut(2)]
    assert again == [[i, i + 1] for i in range(0, 16, 2)]
    third = feed.announce(shares[2])
    before = len(side.started)
    given = [feed.take(each)["x"].tolist() for each in third.recut(2)]  # as the step asks for them
    assert given == [[16, 17], [18, 19], [20, 21], [22, 23]]
    assert side.started[before:] == [18, 20, 22]


def test_after_a_step_that_a_shrink_leaves_as_it_is_the_next_ones_travel(
    feed: Feed, side: Played
) -> None:
    """Such as the tail of an epoch: it was announced before, and is not cut anew."""
    full, tail = (
        feed.announce(step(0, 1, 2, 3, sizes=(4,))),
        feed.announce(step(10, 11, sizes=(2,))),
    )
    feed.take(next(iter(full)))
    feed.shrink(2)
    for each in full.recut(2):
        feed.take(each)
    side.started.clear()

    given, present = [], tail
    for number in (20, 30):
        following = feed.announce(step(*range(number, number + 4), sizes=(2, 2)))
        for each in present.recut(2):
            given.append(feed.take(each)["x"].tolist())
        present = following

    assert given == [[10, 11], [20, 21], [22, 23]]
    assert side.started == [20, 22, 30]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_columns_arrive_in_their_own_types_and_only_float64_widens_them(dtype: torch.dtype) -> None:
    batch = {
        "x": torch.ones(2),
        "half": torch.ones(2).half(),
        "labels": torch.ones(2, dtype=torch.int64),
    }

    given = Feed(CPU, dtype).take(MicroBatch(batch, 2))

    wide = dtype == torch.float64
    assert given["x"].dtype == (torch.float64 if wide else torch.float32)
    assert given["half"].dtype == (torch.float64 if wide else torch.float16)
    assert given["labels"].dtype == torch.int64


def two_columns(batch: Batch) -> Batch:
    return {
        name: column[:, :2].contiguous() if column.dim() > 1 else column
        for name, column in batch.items()
    }


@pytest.mark.parametrize("trim", [None, two_columns])
def test_what_is_announced_is_pinned_as_it_travels(
    trim: Callable[[Batch], Batch] | None, side: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where padding is trimmed, which copies: the trimmed micro-batch is what must lie in
    pinned memory.
    """
    pinned: set[int] = set()

    def pin(column: torch.Tensor) -> torch.Tensor:
        copy = column.clone()
        pinned.add(copy.untyped_storage().data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    samples = {"inputs": torch.arange(12).view(3, 4), "sample_id": torch.arange(3)}
    share = RankShare(
        epoch=0, last_of_epoch=False, samples=samples, sizes=(2, 1), largest=3, trim=trim
    )
    feed = Feed(CPU, torch.float32)
    monkeypatch.setattr(feed, "_side", side)

    announced = list(feed.announce(share))

    assert [m.samples for m in announced] == [2, 1]
    for micro_batch in announced:
        for column in micro_batch.batch.values():
            assert column.untyped_storage().data_ptr() in pinned


class Recorded:
    """Stands for a stream of torch.cuda, and writes down what is asked of it, and of the others, in
    order.
    """

    now: "Recorded"  # the current one
    calls: list[str]  # of all

    def __init__(self, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other: "Recorded") -> None:
        self.calls.append(f"{self.name} waits for {other.name}")

    def __enter__(self) -> None:
        self.before, Recorded.now = Recorded.now, self

    def __exit__(self, *_: object) -> None:
        Recorded.now = self.before


@pytest.fixture(name="calls")
def recorded_streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of a real Side on a machine without a GPU: allocations and copies too, each with
    its stream.
    """
    calls: list[str] = []
    Recorded.calls, Recorded.now = calls, Recorded("compute")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Recorded())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recorded.now)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(
        torch.Tensor,
        "pin_memory",
        lambda column: (calls.append(f"pin {int(column[0])}"), column)[1],
    )
    empty_like, copy = torch.empty_like, torch.Tensor.copy_

    def allocate(column: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(f"{Recorded.now.name} allocates for {int(column[0])}")
        return empty_like(column, **options)  # type: ignore[arg-type]

    def start_copy(
        into: torch.Tensor, column: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        assert non_blocking, "the host would wait"
        calls.append(f"{Recorded.now.name} copies {int(column[0])}")
        return copy(into, column)

    monkeypatch.setattr(torch, "empty_like", allocate)
    monkeypatch.setattr(torch.Tensor, "copy_", start_copy)
    return calls


def test_the_order_on_both_streams(calls: list[str]) -> None:
    """Memory belongs to the computing stream; a copy waits for what used it, and its own use waits
    for the copy.
    """
    feed = Feed(CPU, torch.float32)
    feed._side = Side(CPU, torch.float32)
    announced = feed.announce(step(1, 2, 3))
    calls.clear()  # they are pinned

    for each in announced:
        feed.take(each)
        calls.append(f"compute uses {int(each.batch['x'][0])}")

    assert calls == [
        "compute waits for side",
        # The first one is copied at once, on the computing stream.
        "compute allocates for 2",
        "side waits for compute",
        "side copies 2",
        "compute uses 1",
        "compute waits for side",
        "compute allocates for 3",
        "side waits for compute",
        "side copies 3",
        "compute uses 2",
        "compute waits for side",
        "compute uses 3",
    ]


def test_an_evaluation_reads_and_sends_one_batch_ahead(calls: list[str]) -> None:
    def read() -> Iterator[Batch]:
        for number in (1, 2, 3):
            calls.append(f"host reads {number}")
            yield {"x": torch.tensor([number])}

    for batch in one_ahead(read(), Side(CPU, torch.float32), torch.float32):
        calls.append(f"compute uses {int(batch['x'][0])}")

    def sent(number: int) -> list[str]:
        start = [f"host reads {number}", "compute waits for side", f"pin {number}"]
        return [
            *start,
            f"compute allocates for {number}",
            "side waits for compute",
            f"side copies {number}",
        ]

    # Each use is ordered behind its copy, and before the next copy is waited for.
    uses = [
        "compute uses 1",
        *sent(3),
        "compute uses 2",
        "compute waits for side",
        "compute uses 3",
    ]
    assert calls == [*sent(1), *sent(2), *uses]


def test_an_evaluations_pixels_travel_as_they_are_stored(
    side: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    stored = torch.tensor([0, 51, 255], dtype=torch.uint8)
    started: list[torch.dtype] = []
    start = side.start
    monkeypatch.setattr(
        side, "start", lambda batch: (started.append(batch["x"].dtype), start(batch))[1]
    )

    (given,) = one_ahead([Scaled({"x": stored}, frozenset("x"))], side, torch.float32)  # type: ignore[arg-type]

    assert started == [torch.uint8]
    assert given["x"].tolist() == [0.0, pytest.approx(0.2), 1.0]


def test_on_a_cpu_nothing_is_read_ahead() -> None:
    read: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in (1, 2):
            read.append(number)
            yield {"x": torch.tensor([number])}

    for number, batch in enumerate(travelling(batches(), CPU, torch.float64), start=1):
        assert (int(batch["x"][0]), read[-1]) == (number, number)
