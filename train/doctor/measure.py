"""Measured by messages between the ranks: the difference of their clocks, an all-reduce."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from train.distributed.ranks import Ranks
from train.doctor.findings import Finding, doubtful, fine, wrong

ROUNDS = 5
SLOW_GB_PER_SECOND = 1.0


def clocks_ahead(ranks: Ranks) -> list[float]:
    """Seconds by which each rank's clock is ahead of rank 0's, to the duration of a barrier."""
    by_rank: list[list[float]] = [[] for _ in range(ranks.world_size)]
    for _ in range(ROUNDS):
        # Right behind a barrier, which all ranks leave at nearly the same moment. The median, since
        # a rank may be held up in one of the rounds.
        ranks.barrier()
        times = ranks.gather(time.time())
        for rank, seconds in enumerate(times):
            by_rank[rank].append(seconds - times[0])
    return [median(differences) for differences in by_rank]


def all_reduce(ranks: Ranks, device: torch.device) -> list[Finding]:
    """Whether a sum as of gradients, in the same process group, is right, and how fast it is.

    The same findings on all ranks.
    """
    if ranks.world_size == 1:
        return []
    megabytes = 256 if device.type == "cuda" else 16
    # Rank r gives r + 1, so the sum is 1 + 2 + ... + world size, exact in float32.
    expected = ranks.world_size * (ranks.world_size + 1) / 2
    seconds = []
    is_right = True
    for _ in range(ROUNDS):
        # float32: 4 bytes a number, as gradients are.
        tensor = torch.full((megabytes * 10**6 // 4,), float(ranks.rank + 1), device=device)
        # Kernels run behind the host: the time would begin before the tensor is filled, and end
        # before the sum is there. The barrier keeps waiting for a late rank out of it.
        _wait(device)
        ranks.barrier()
        start = time.perf_counter()
        ranks.add_up([tensor])
        _wait(device)
        seconds.append(time.perf_counter() - start)
        # No early end: a rank that left the loop would leave the others waiting in the next sum.
        is_right = is_right and bool((tensor == expected).all())
    # Without the first round, which opens the connections; of the slowest rank.
    slowest = max(ranks.gather(median(seconds[1:])))
    return check_sum(ranks.gather(is_right), slowest, megabytes, device.type)


def check_sum(
    is_right: Sequence[bool], seconds: float, megabytes: int, device: str
) -> list[Finding]:
    """`is_right`: of each rank."""
    failed = [str(rank) for rank, right in enumerate(is_right) if not right]
    if failed:
        return wrong(
            f"the sum over the ranks is wrong on rank {', '.join(failed)}",
            "Set: NCCL_DEBUG=INFO, and try again",
        )
    # What each link of a ring carries, which nccl-tests calls the bus bandwidth.
    ranks = len(is_right)
    speed = 2 * (ranks - 1) / ranks * megabytes / 1000 / seconds
    text = f"all-reduce of {megabytes} MB over {ranks} ranks ({device}): {speed:.2g} GB/s"
    if device == "cuda" and speed < SLOW_GB_PER_SECOND:
        return doubtful(
            f"{text}, which is slow for GPUs", "NCCL_DEBUG=INFO shows which connections NCCL uses"
        )
    return fine(text)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
