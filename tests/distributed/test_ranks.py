"""Ranks among each other: who leaves first where one is gone."""

import time
from typing import Any

import pytest

from tests.helpers import rank_group
from train.distributed.ranks import YIELD_SECONDS, Ranks, yield_to_failed_rank


def seconds_given(error: RuntimeError) -> float:
    start = time.monotonic()
    yield_to_failed_rank(error)
    return time.monotonic() - start


def lose_the_last(world_size: int) -> float:
    """Seconds that a rank waits before it leaves, having lost the last one; 0 on that one."""
    ranks = rank_group()
    ranks.barrier()
    if ranks.rank == world_size - 1:
        return 0.0
    with pytest.raises(RuntimeError) as lost:
        ranks.gather(ranks.rank)
    return seconds_given(lost.value)


@pytest.mark.parametrize("world_size", [2, 3])
def test_who_lost_another_rank_leaves_after_it(run_ranks: Any, world_size: int) -> None:
    *others, last = run_ranks(world_size, lose_the_last, world_size)

    assert last == 0
    assert all(seconds >= YIELD_SECONDS for seconds in others), others


def test_who_fails_itself_leaves_at_once() -> None:
    assert seconds_given(RuntimeError("a fault of its own")) < YIELD_SECONDS / 2


def read_after_another_start() -> tuple[list[str | None], list[str | None]]:
    """What two ranks read of an earlier training of theirs, over the same store, and of this one."""
    group = rank_group()
    number, size = group.rank, group.world_size
    earlier = Ranks(number, size)
    earlier.board().pin("end", "5")
    earlier.barrier()
    now = Ranks(number, size)
    board = now.board()
    of_earlier = board.read("end")
    now.barrier()
    board.pin("end", str(number))
    now.barrier()
    return of_earlier, board.read("end")


def test_what_an_earlier_start_has_pinned_up_is_not_read(run_ranks: Any) -> None:
    assert run_ranks(2, read_after_another_start) == [([None, None], ["0", "1"])] * 2
