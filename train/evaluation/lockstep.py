"""The batches of an evaluation, on all ranks in lockstep: all leave at the same batch."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from train.distributed.ranks import Ranks, Sum

T = TypeVar("T")


class EvaluationStopped(Exception):
    """A stop was asked for in an evaluation. Raised on all ranks; the evaluation is owed."""


def run_in_lockstep(
    batches: Iterator[T],
    count: int,
    work: Callable[[T], None],
    ranks: Ranks,
    stop_requested: Callable[[], bool],
    needs_all_ranks: bool = False,
) -> None:
    """`work(batch)` for each of `batches`, of which no rank has more than `count`.

    Each batch costs one small message, for which the next batch does not wait. What `work` raises
    is raised here on its own rank, and the others return early: they have to ask each other next
    whether all went well. Raises EvaluationStopped on all ranks where none failed and one was asked
    to stop.

    `needs_all_ranks`: the work on a batch does, so none leaves it out because it alone was asked to
    stop.
    """
    failure: Exception | None = None
    message: Sum | None = None
    failed = 0.0  # ranks, of which the others know
    stopped = 0.0
    # So many rounds on every rank, also on one that has no batch left: the messages of all have to
    # match.
    for _ in range(count):
        is_stopping = False
        try:
            is_stopping = stop_requested()
            skips_batch = failure is not None or (is_stopping and not needs_all_ranks)
            batch = None if skips_batch else next(batches, None)
            if batch is not None:
                work(batch)
        except Exception as error:  # the others hear of it first
            failure = error
        # Only what all know may end the loop, since every rank has to send as many messages: the
        # one before this is read, and one more is sent also where all leave now.
        if message is not None:
            failed, stopped = message.wait()
        message = ranks.start_sum([failure is not None, is_stopping])
        if failed or stopped:
            break
    if message is not None:
        # The message of the last round has not been read yet, and may be the one that names a
        # failure.
        last_failed, last_stopped = message.wait()
        failed += last_failed
        stopped += last_stopped
    if failure is not None:
        raise failure
    if stopped and not failed:
        raise EvaluationStopped
