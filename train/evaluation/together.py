"""The batches of an evaluation, on all ranks side by side: where one rank leaves, all leave at the
same batch.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

from train.distributed.ranks import Ranks, Sum

T = TypeVar("T")


class Abandoned(Exception):
    """A stop was asked for in an evaluation. Raised on all ranks; the evaluation is owed."""


def side_by_side(
    batches: Iterator[T],
    count: int,
    work: Callable[[T], None],
    ranks: Ranks,
    stopping: Callable[[], bool],
    in_step: bool = False,
) -> None:
    """`work(batch)` for each of `batches`, of which no rank has more than `count`.

    Each batch costs one small message, for which the next batch does not wait. What `work` raises
    is raised here on its own rank, and the others return early: they have to ask each other next
    whether all went well. Raises Abandoned on all ranks where none failed and one was `stopping`.

    `in_step`: the work on a batch needs all ranks, so none leaves it out because it alone was told
    to stop.
    """
    failure: Exception | None = None
    message: Sum | None = None
    failed = stopped = 0.0
    for _ in range(count):
        is_stopping = False
        try:
            is_stopping = stopping()
            is_leaving = failure is not None or (is_stopping and not in_step)
            batch = None if is_leaving else next(batches, None)
            if batch is not None:
                work(batch)
        except Exception as error:  # the others hear of it first
            failure = error
        if message is not None:
            failed, stopped = message.wait()
        # Sent also where all leave now. Only what all know may end this: every rank sends as many.
        message = ranks.start_sum([failure is not None, is_stopping])
        if failed or stopped:
            break
    if message is not None:
        now_failed, now_stopped = message.wait()
        failed, stopped = failed + now_failed, stopped + now_stopped
    if failure is not None:
        raise failure
    if stopped and not failed:
        raise Abandoned
